from .bootstrap import bootstrap_ci as bootstrap_ci
from .bootstrap import clustered_ci as clustered_ci
from .bootstrap import paired_difference_ci as paired_difference_ci
from .canary_check import verify_adapter as verify_adapter
