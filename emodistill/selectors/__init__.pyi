from .learned import IQLSelector as IQLSelector
from .selector import Selector as Selector
from .untrained import FixedSelector as FixedSelector
from .untrained import RandomSelector as RandomSelector
