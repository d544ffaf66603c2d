"""Deciding after each turn whether the two sides agree, have broken off, or go on.

Rule `stand` accepts where
- both sides stand at the same value, within the domain's tolerance, or have crossed: with
  s = sgn(x* − x0), the focal ask f and the counterparty's offer c meet when s(f − c) <= tolerance;
  the later value counts;
- the last speaker says yes to the other side's standing offer; that value counts. A yes with a
  condition, a question, a figure of speech or another value is no yes.

It reports a breakdown where the last speaker ends the talks; threatening to is not ending them.

Rule `upstream` accepts where the last offers differ by 5 units or less, whatever the unit (in the
student domain that is five hours), at the midpoint rounded half to even, as the reference
implementation settles; else it is `stand`, which its language-model reader comes closest to.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from emodistill.domains import get_domain
from emodistill.errors import InputError
from emodistill.negotiation import phrases
from emodistill.negotiation.clauses import Sentence, plain, split_sentences
from emodistill.negotiation.quantities import scan
from emodistill.records import Outcome, Turn

RULES = ("stand", "upstream")
UPSTREAM_TOLERANCE = 5.0
_ROUNDING = 1e-9


class Verdict(NamedTuple):
    """How the dialogue stands; `final_value` is None unless `accepted`."""

    outcome: Outcome
    final_value: float | None


ONGOING = Verdict("ongoing", None)
BREAKDOWN = Verdict("breakdown", None)


def mediate(
    turns: Sequence[Turn],
    *,
    domain: str,
    focal_target: float,
    counterparty_anchor: float,
    rule: str = "stand",
) -> Verdict:
    """The verdict after the last of `turns`, whose offers have been read.

    Only offers made in the dialogue stand; the counterparty's anchor does not.

    Raises:
      InputError: unknown rule or domain, or a target equal to the anchor.
    """
    if rule not in RULES:
        raise InputError(f"rule={rule!r} is not known; use one of {', '.join(RULES)}.")
    if focal_target == counterparty_anchor:
        raise InputError(
            f"focal_target and counterparty_anchor are both {focal_target:g}; "
            "there is nothing to negotiate. Give them different values."
        )
    tolerance = get_domain(domain).tolerance + _ROUNDING
    if not turns:
        return ONGOING
    last = turns[-1]
    own = _last_offer(turns, is_own=True)
    other = _last_offer(turns, is_own=False)
    says = _listen(last.text, domain)

    if (
        says.accepts
        and other is not None
        and (last.offer is None or abs(last.offer - other.offer) <= tolerance)
    ):
        return Verdict("accepted", other.offer)
    if says.ends:
        return BREAKDOWN
    if last.offer is None or own is None or other is None or says.has_condition:
        return ONGOING
    if rule == "upstream" and abs(last.offer - other.offer) <= UPSTREAM_TOLERANCE + _ROUNDING:
        return Verdict("accepted", float(round((last.offer + other.offer) / 2)))
    focal, counterparty = (own, other) if last.speaker == "focal" else (other, own)
    sign = 1.0 if focal_target > counterparty_anchor else -1.0
    if sign * (focal.offer - counterparty.offer) > tolerance:
        return ONGOING
    if _is_repeat(turns, tolerance) and _listen(other.text, domain).has_condition:
        return ONGOING  # the other side came here on a condition that was not taken up
    return Verdict("accepted", last.offer)


def replay(
    turns: Sequence[Turn],
    *,
    domain: str,
    focal_target: float,
    counterparty_anchor: float,
    rule: str,
) -> Verdict:
    """How a recorded dialogue ends under `rule`: the first verdict that is no `ongoing`."""
    for number in range(1, len(turns) + 1):
        verdict = mediate(
            turns[:number],
            domain=domain,
            focal_target=focal_target,
            counterparty_anchor=counterparty_anchor,
            rule=rule,
        )
        if verdict.outcome != "ongoing":
            return verdict
    return ONGOING


class _Standing(NamedTuple):
    offer: float
    text: str


def _last_offer(turns: Sequence[Turn], *, is_own: bool) -> _Standing | None:
    """The standing offer of the last speaker (or of the other side), None where there is none."""
    for turn in reversed(turns):
        if (turn.speaker == turns[-1].speaker) == is_own and turn.offer is not None:
            return _Standing(turn.offer, turn.text)
    return None


def _is_repeat(turns: Sequence[Turn], tolerance: float) -> bool:
    """Whether the last speaker stood at the same value before this turn."""
    last = turns[-1]
    before = [t.offer for t in turns[:-1] if t.speaker == last.speaker and t.offer is not None]
    return bool(before) and last.offer is not None and abs(before[-1] - last.offer) <= tolerance


# What is said ------------------------------------------------------------------------------------


class _Said(NamedTuple):
    accepts: bool
    has_condition: bool
    ends: bool


_NAMED = (
    r"(?:Q|(?:(?:that|this|these|those|your|the) )(?:\w+ ){0,3}?(?:offer|proposal|terms|figure|"
    r"number|deal|Q|time|timeline|plan|suggestion|bedtime|date|slot|conditions|compromise|"
    r"schedule|counter ?-?offer|counter|window|arrangement))"
)
_OFFER_NOUN = rf"(?:it|that|this|these|those|yours|{_NAMED})"
# What may follow a yes in its clause.
_TAIL = (
    r"(?: (?:then|now|today|too|gladly|with pleasure|for (?:me|us)|with (?:me|us)|(?:by|"
    r"to) (?:me|us)|it is|Q))*"
)
# What may come before it.
_LEAD = (
    r"^(?:and |but |so |then |still |well |very well |yes |yeah |okay |alright |fine |good |"
    r"great |perfect |sure |thank you |thanks |oh )*"
)
_I = (
    r"(?:i|we)(?: (?:can|will|would|could|do|hereby|gladly|happily|reluctantly|gratefully|am|are|"
    r"shall|now|therefore|also|both|fully|grudgingly|willing to|happy to|ready to|glad to|"
    r"going to|prepared to|pleased to|able to|have to|must|must say))*"
)
# A whole clause that says yes: "you have a deal", "I can live with that", "Q it is".
_YES = re.compile(
    rf"{_LEAD}(?:(?:it is|we have|you have|you have got|that is|you got|then it is|"
    rf"let us call it) )?(?:(?:a|yourself a|got yourself a) )?deal(?: (?:at|on|for|"
    rf"with) (?:\w+ )?Q)?{_TAIL}$"
    rf"|{_LEAD}(?:done|sold|(?:we are |it is |consider (?:it |that |this |the matter |"
    rf"this matter )?)?(?:agreed|accepted|settled))(?: (?:at|on|for|to) {_OFFER_NOUN})?{_TAIL}$"
    rf"|{_LEAD}{_I} (?:agree|accept|take)(?: to| on| with)?(?: {_OFFER_NOUN})?{_TAIL}$"
    rf"|{_LEAD}{_I} (?:agree|accept)(?: to| on)? {_NAMED}\b(?! (?:is|was|are|were|sounds))"
    rf"|{_LEAD}{_I} (?:go with|live with|work with|settle for|say yes to|commit to|do|manage|"
    rf"take|fine with|okay with|happy with|good with|comfortable with|sign) {_OFFER_NOUN}{_TAIL}$"
    rf"|{_LEAD}(?:{_OFFER_NOUN}|Q|the Q|your Q) (?:works?|will work|will do|suits?|(?:is|are|"
    rf"sounds?) (?:perfectly |very |quite |totally )?(?:fine|acceptable|agreeable|good|great|"
    rf"fair|perfect|agreed|okay|doable|wonderful|reasonable))(?: (?:me|us))?{_TAIL}$"
    rf"|{_LEAD}sounds (?:good|fair|great|perfect|fine){_TAIL}$|{_LEAD}works for (?:me|us)$"
    rf"|{_LEAD}(?:it |that |this |Q )?works (?:on|at) (?:our|my) end$|{_LEAD}consider (?:it|that|"
    rf"this) (?:booked|done|settled|agreed|a deal|a promise)$"
    rf"|{_LEAD}let us (?:shake on it|shake hands|do (?:it|that|this)|"
    rf"go with {_OFFER_NOUN}){_TAIL}$"
    rf"|{_LEAD}(?:have it your way|you win|your way|count me in|i am in|we are in|"
    rf"we have an agreement|we are in agreement|we agree)$|{_LEAD}Q it is{_TAIL}$"
)
# A yes where it is the whole answer.
_BARE_YES = re.compile(
    r"^(?:yes|yeah|yep|okay|fine|alright|very well|sure)(?: (?:then|please|okay|fine))*$"
)
_DENIES = re.compile(
    r"\b(?:not|never|no|unable|refuse|hardly|nowhere|neither|nor|cannot|might|maybe|perhaps|"
    r"almost|nearly|unless|until|wish)\b"
)
# A yes or an offer that hangs on something else.
_CONDITION = re.compile(
    r"\b(?:if|provided|providing|as long as|so long as|on (?:the |one )?condition|assuming|"
    r"in exchange|in return|subject to|contingent|unless|depending on|once you|when you (?:pay|"
    r"sign|send|give|agree)|but (?:only(?!,? (?:, )?because)|(?:i|we) (?:need|want|require|expect|"
    r"must|insist|"
    r"would need|will need)|you (?:must|need|have to|will have to)))\b"
)
# Conditions that are none: on the other side's consent, or threats.
_CONDITION_MET = re.compile(
    r"\b(?:if (?:i|we) (?:stay|keep|hold|lie|hurry|work|skip|start|breathe|save|finish)\b|"
    r"if (?:that|this|it|Q) (?:works?|suits?|helps?|is (?:okay|fine|alright|acceptable|"
    r"what))|if (?:you|we) (?:agree|accept|say yes|can (?:do|accept|agree|live)|commit|confirm|"
    r"settle|are (?:willing|okay|fine|happy))|if (?:need be|possible|necessary|i must|we must|"
    r"i have to|so|that is what)|if (?:you|we|i) (?:do|can|will|could|would) not|"
    r"unless you (?:pay|agree|accept)|as long as (?:possible|it takes))\b"
)
# "I agree, but Q is too short."
_TAKES_BACK = re.compile(
    r"^(?:but|however|though|although|yet|except)\b.*\b(?:not|no|never|too|less|more|need|"
    r"instead|only|impossible)\b"
)

# Marks, anywhere in its sentence, of an ending that is only threatened or thought about.
_THREAT = re.compile(
    r"\b(?:if|unless|otherwise|or|else|before|until|tempted to|rather than|instead of|when|should|"
    r"sounds like|as if|keep (?:\w+ing|this|it|that)|one more|another|push me|try me)\b"
)
# Marks of it in its own clause.
_NO_ENDING = re.compile(
    r"\b(?:not|never|without|may|might|could|would|about to|ready to|prepared to|close to|"
    r"willing to|want to|thinking of|think about|considering|sure|hope)\b"
)
_TALKS = (
    r"(?:conversation|negotiation|discussion|call|meeting|talk|chat|dialogue|matter|exchange|"
    r"request|session|app|channel|line|coaching)"
)
# The talks end now, or the speaker takes the outside option.
_ENDS = re.compile(
    r"\b(?:i am|we are|i have to|i must|we must|no choice but to|going to) (?:now )?(?:walk|"
    r"walking) (?:away|out)\b"
    r"|\b(?:i am|we are) (?:hanging up|pulling out|withdrawing from|backing out|"
    r"breaking (?:this |it )?off|"
    rf"(?:ending|leaving|terminating|closing|breaking off|quitting|stopping) (?:this|the|these|"
    rf"our) (?:\w+ )?(?:{_TALKS}s?|talks|table))\b"
    rf"|\b(?:this|our|the) {_TALKS} (?:is|are) (?:now )?(?:over|finished|ended|closed|done|"
    rf"at an end|terminated)\b"
    r"|\b(?:these|our|the) (?:talks|negotiations|discussions) (?:are|have) (?:now )?(?:over|"
    r"finished|ended|closed|done|at an end|failed|collapsed|broken down)\b"
    r"|\b(?:i am|we are) (?:all |completely |so |officially )?(?:done|finished|through) (?:here|"
    r"talking|negotiating|discussing|bargaining|arguing|with "
    rf"(?:this|these|the|our|it) (?:\w+ )?(?:{_TALKS}s?|talks)|with (?:this|it|you)(?:$|(?: and)? "
    r"(?:all|for good|your|now|completely)))(?!\w)"
    r"|^(?:then |so |well )*(?:i am|we are) (?:done|out|finished|through)$"
    r"|\b(?:there is|we have|i have) nothing (?:more|left|further|else) (?:to|"
    r"for us to) (?:discuss|talk about|say|negotiate|add)\b"
    r"|\b(?:i|we) (?:hereby )?(?:end|break off|terminate|quit|call off|leave) (?:this|the|these|"
    r"our) "
    rf"(?:{_TALKS}s?|talks)\b"
    r"|\b(?:there (?:is|will be) no (?:deal|agreement))$|\bthe deal is off\b|\b(?:it|"
    r"this) is over$"
    r"|\b(?:i |we )?will see you in court\b|^see you in court\b"
    r"|\b(?:i am|we are) (?:now )?(?:taking|handing|passing|referring|leaving) (?:this|it|"
    r"the (?:case|matter|file|account)|everything|you) (?:over )?to (?:\w+ ){0,2}?(?:court|"
    r"courts|lawyers?|attorneys?|legal team)\b"
    r"|\b(?:i|we) will (?:take|settle|see|resolve|leave|hand) (?:this|it|the (?:case|matter)|"
    r"you) (?:\w+ ){0,2}?(?:court|courts|lawyers?|attorneys?) instead\b"
    r"|\b(?:i am|we are) (?:going|moving|transferring|taking (?:my|our) \w+) (?:to (?:another|"
    r"a different) (?:hospital|clinic|surgeon|lender|doctor)|elsewhere)\b"
    r"|\b(?:i|we) will (?:find|go to|try|look for) another (?:hospital|clinic|surgeon|lender|"
    r"doctor) instead\b"
    r"|\b(?:goodbye|good bye|farewell) (?:then |and )?(?:for good|forever)\b|^(?:goodbye|"
    r"good bye)$"
    r"|\b(?:i am|we are) (?:switching|turning) you off\b|\b(?:do not|never) (?:ever )?(?:call|"
    r"contact|talk to|speak to|bother) (?:me|us) (?:again|any ?more)\b|^leave me alone$"
    r"|\b(?:do not|never) (?:ever )?(?:bring (?:it|this) up|bother calling)(?: again| back)?\b"
    r"|\btake me off (?:the|your) list\b|\bstop (?:contacting|calling|messaging|texting) (?:me|"
    r"us)\b"
    r"|\b(?:i am|we are) ending (?:this|the|these|our) (?:\w+ ){1,3}(?:here|now|for good|today)\b"
    r"|^over and out$|\bthis is my last (?:message|call|word to you)\b"
    r"|\b(?:i am|we are) (?:deleting|uninstalling|muting|blocking|logging off|signing off|"
    r"switching off|turning off|shutting off)\b"
    rf"|\b(?:this|our|the) (?:{_TALKS}|talks|talk) (?:ends?|stops?) (?:here|now|today)\b"
    rf"|\b(?:i am|we are) (?:now )?(?:ending|closing|breaking off|terminating|stopping) (?:this|"
    rf"the|"
    rf"these|our|your) (?:\w+ )?(?:file|case|{_TALKS}s?|talks)\b"
    r"|\b(?:i am|we are) not (?:waiting|negotiating|talking|discussing|bargaining|"
    r"speaking)(?: \w+){0,5}"
    r" (?:any ?more|any longer|further)\b|\b(?:i am|we are) no longer (?:waiting|negotiating|"
    r"talking|discussing|willing to)\b"
)
# Negations that belong to an ending.
_SAFE_WORDS = re.compile(
    r"\b(?:do not|never) (?:ever )?(?:call|contact|talk|speak|bother|bring)|no choice but|"
    r"\bno (?:deal|"
    r"agreement)\b|\bnot (?:waiting|negotiating|talking|discussing|bargaining|speaking)\b|"
    r"\banother (?:hospital|clinic|surgeon|lender|doctor)\b"
)


@functools.lru_cache(maxsize=4096)
def _listen(text: str, domain: str) -> _Said:
    sentences = split_sentences(scan(plain(text), domain).text)
    marked = re.sub(r"Q\d+", "Q", " , ".join(s.text for s in sentences))
    has_condition = any(_is_conditional(s) for s in sentences)
    accepts = (
        not has_condition
        and not phrases.IRONY.search(marked)
        and (
            any(_accepts(s) for s in sentences)
            or (len(sentences) == 1 and _is_bare_yes(sentences[0]))
        )
        and not any(_TAKES_BACK.search(c) for s in sentences for c in s.clauses)
    )
    return _Said(accepts, has_condition, any(_ends(s) for s in sentences))


def _is_bare_yes(sentence: Sentence) -> bool:
    """ "Yes.", "Fine, but I think it unfair": a yes that is the whole answer."""
    first, *rest = sentence.clauses
    is_alone = all(re.match(r"but\b|though\b|why not$", c) or _BARE_YES.match(c) for c in rest)
    return bool(_BARE_YES.match(first)) and is_alone and not sentence.is_question


def _accepts(sentence: Sentence) -> bool:
    """Whether a clause says yes outright, and nothing in it denies that."""
    if sentence.is_question:
        return False
    for clause in sentence.clauses:
        clause = re.sub(r"Q\d+", "Q", clause)
        if _YES.search(clause) and not _DENIES.search(clause):
            return True
    return False


def _is_conditional(sentence: Sentence) -> bool:
    text = re.sub(r"Q\d+", "Q", sentence.text)
    return bool(_CONDITION.search(_CONDITION_MET.sub(" ", text)))


def _ends(sentence: Sentence) -> bool:
    """Whether the sentence ends the talks now; conditions, alternatives and wishes don't."""
    if sentence.is_question:
        return False
    clauses = [re.sub(r"Q\d+", "Q", clause) for clause in sentence.clauses]
    whole = " ".join(clauses)
    if _THREAT.search(_SAFE_WORDS.sub(" ", whole)):
        return False
    ends = [clause for clause in clauses if _ENDS.search(clause)]
    if not ends and _ENDS.search(whole):
        ends = [whole]
    return any(not _NO_ENDING.search(_SAFE_WORDS.sub(" ", clause)) for clause in ends)
