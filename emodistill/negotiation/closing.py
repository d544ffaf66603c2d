"""Whether an utterance says yes, sets a condition, or ends the talks: what `mediator` listens for.

As in `phrases`, a quantity is `Q` and text is in plain form.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from emodistill.negotiation import phrases
from emodistill.negotiation.clauses import Sentence, plain, split_sentences, unnumbered
from emodistill.negotiation.patterns import pattern
from emodistill.negotiation.quantities import scan

# What a yes is said to, with a noun ("your offer") or without ("that").
_NAMED = pattern(
    r"""
    (?:Q|(?:(?:that|this|these|those|your|the) )(?:\w+ ){0,3}?(?:offer|proposal|terms|figure|number
    |deal|Q|time|timeline|plan|suggestion|bedtime|date|slot|conditions|compromise|schedule
    |counter ?-?offer|counter|window|arrangement))
    """
)
_OFFER = pattern(r"(?:it|that|this|these|those|yours|{NAMED})", NAMED=_NAMED)

# A whole clause that says yes: "you have a deal", "I can live with that", "Q it is".
_YES = pattern(
    r"""
    ^(?:(?:and|but|so|then|still|well|very well|yes|yeah|okay|alright|fine|good|great|perfect|sure
    |thank you|thanks|oh) )*
    (?:
    (?:
    # "deal at Q", "you have got yourself a deal"
    (?:(?:it is|we have|you have|you have got|that is|you got|then it is|let us call it) )?
    (?:(?:a|yourself a|got yourself a) )?deal(?: (?:at|on|for|with) (?:\w+ )?Q)?
    # "done", "agreed", "consider the matter settled"
    |(?:done|sold|(?:(?:we are|it is|consider(?: (?:it|that|this|the matter|this matter))?) )?
    (?:agreed|accepted|settled))(?: (?:at|on|for|to) {OFFER})?
    # "I accept it", "we can live with your offer"
    |{I} (?:agree|accept|take)(?: to| on| with)?(?: {OFFER})?
    |{I} (?:go with|live with|work with|settle for|say yes to|commit to|do|manage|take|fine with
    |okay with|happy with|good with|comfortable with|sign) {OFFER}
    # "that works for me", "Q is perfectly fine", "sounds good"
    |(?:{OFFER}|Q|the Q|your Q) (?:works?|will work|will do|suits?|(?:is|are
    |sounds?) (?:(?:perfectly|very|quite|totally) )?(?:fine|acceptable|agreeable|good|great|fair
    |perfect|agreed|okay|doable|wonderful|reasonable))(?: (?:me|us))?
    |sounds (?:good|fair|great|perfect|fine)
    # "let us shake on it", "Q it is"
    |let us (?:shake on it|shake hands|do (?:it|that|this)|go with {OFFER})
    |Q it is
    )
    # what may follow in the clause
    (?: (?:then|now|today|too|gladly|with pleasure|for (?:me|us)|with (?:me|us)|(?:by|to) (?:me|us)
    |it is|Q))*$
    |works for (?:me|us)$
    |(?:(?:it|that|this|Q) )?works (?:on|at) (?:our|my) end$
    |consider (?:it|that|this) (?:booked|done|settled|agreed|a deal|a promise)$
    |(?:have it your way|you win|your way|count me in|i am in|we are in|we have an agreement
    |we are in agreement|we agree)$
    # said to something that has a name, a yes may go on: "I accept your offer of Q with thanks"
    |{I} (?:agree|accept)(?: to| on)? {NAMED}\b(?! (?:is|was|are|were|sounds))
    )
    """,
    OFFER=_OFFER,
    NAMED=_NAMED,
    I=pattern(
        r"""
        (?:i|we)(?: (?:can|will|would|could|do|hereby|gladly|happily|reluctantly|gratefully|am|are
        |shall|now|therefore|also|both|fully|grudgingly|willing to|happy to|ready to|glad to
        |going to|prepared to|pleased to|able to|have to|must|must say))*
        """
    ),
)
# A yes where it is the whole answer.
_BARE_YES = pattern(
    r"^(?:yes|yeah|yep|okay|fine|alright|very well|sure)(?: (?:then|please|okay|fine))*$"
)
_DENIES = pattern(
    r"""
    \b(?:not|never|no|unable|refuse|hardly|nowhere|neither|nor|cannot|might|maybe|perhaps|almost
    |nearly|unless|until|wish)\b
    """
)
# "I agree, but Q is too short."
_TAKES_BACK = pattern(
    r"""
    ^(?:but|however|though|although|yet|except)\b.*\b(?:not|no|never|too|less|more|need|instead
    |only|impossible)\b
    """
)

# A yes or an offer that hangs on something else.
_CONDITION = pattern(
    r"""
    \b(?:if|provided|providing|as long as|so long as|on (?:the |one )?condition|assuming
    |in exchange|in return|subject to|contingent|unless|depending on|once you|when you (?:pay|sign
    |send|give|agree)
    # "but only if", "but you must"; "but only because" gives a reason
    |but (?:only(?!,? (?:, )?because)|(?:i|we) (?:need|want|require|expect|must|insist|would need
    |will need)|you (?:must|need|have to|will have to)))\b
    """
)
# Conditions that are none.
_CONDITION_MET = pattern(
    r"""
    # what the speaker does: "if we hurry"
    \b(?:if (?:i|we) (?:stay|keep|hold|lie|hurry|work|skip|start|breathe|save|finish)\b
    # the other side's consent: "if that works", "if you agree"
    |if (?:that|this|it|Q) (?:works?|suits?|helps?|is (?:okay|fine|alright|acceptable|what))
    |if (?:you|we) (?:agree|accept|say yes|can (?:do|accept|agree|live)|commit|confirm|settle
    |are (?:willing|okay|fine|happy))
    # figures of speech and threats: "if need be", "if you can not"
    |if (?:need be|possible|necessary|i must|we must|i have to|so|that is what)
    |if (?:you|we|i) (?:do|can|will|could|would) not|unless you (?:pay|agree|accept)
    |as long as (?:possible|it takes))\b
    """
)

# Marks, anywhere in its sentence, of an ending that is only threatened or thought about.
_THREAT = pattern(
    r"""
    \b(?:if|unless|otherwise|or|else|before|until|tempted to|rather than|instead of|when|should
    |sounds like|as if|keep (?:\w+ing|this|it|that)|one more|another|push me|try me)\b
    """
)
# Marks of it in its own clause.
_NO_ENDING = pattern(
    r"""
    \b(?:not|never|without|may|might|could|would|about to|ready to|prepared to|close to|willing to
    |want to|thinking of|think about|considering|sure|hope)\b
    """
)
# The talks end now, or the speaker takes the outside option.
_ENDS = pattern(
    r"""
    # "I am walking away", "we are breaking this off", "I am ending this call"
    \b(?:i am|we are|i have to|i must|we must|no choice but to|going to) (?:now )?(?:walk
    |walking) (?:away|out)\b
    |\b(?:i am|we are) (?:hanging up|pulling out|withdrawing from|backing out
    |breaking (?:this |it )?off|(?:ending|leaving|terminating|closing|breaking off|quitting
    |stopping) (?:this|the|these|our) (?:\w+ )?(?:{TALKS}s?|talks|table))\b
    |\b(?:i am|we are) (?:now )?(?:ending|closing|breaking off|terminating|stopping) (?:this|the
    |these|our|your) (?:\w+ )?(?:file|case|{TALKS}s?|talks)\b
    |\b(?:i am|we are) ending (?:this|the|these|our) (?:\w+ ){1,3}(?:here|now|for good|today)\b
    |\b(?:i|we) (?:hereby )?(?:end|break off|terminate|quit|call off|leave) (?:this|the|these
    |our) (?:{TALKS}s?|talks)\b
    # "this conversation is over", "our talks have failed", "the call ends here"
    |\b(?:this|our|the) {TALKS} (?:is|are) (?:now )?(?:over|finished|ended|closed|done|at an end
    |terminated)\b
    |\b(?:these|our|the) (?:talks|negotiations|discussions) (?:are|have) (?:now )?(?:over|finished
    |ended|closed|done|at an end|failed|collapsed|broken down)\b
    |\b(?:this|our|the) (?:{TALKS}|talks|talk) (?:ends?|stops?) (?:here|now|today)\b
    # "I am done talking", "we have nothing more to say", "there will be no deal"
    |\b(?:i am|we are) (?:all |completely |so |officially )?(?:done|finished|through) (?:here
    |talking|negotiating|discussing|bargaining|arguing|with (?:this|these|the|our
    |it) (?:\w+ )?(?:{TALKS}s?|talks)|with (?:this|it|you)(?:$|(?: and)? (?:all|for good|your|now
    |completely)))(?!\w)
    |^(?:then |so |well )*(?:i am|we are) (?:done|out|finished|through)$
    |\b(?:there is|we have|i have) nothing (?:more|left|further|else) (?:to|for us to) (?:discuss
    |talk about|say|negotiate|add)\b
    |\b(?:there (?:is|will be) no (?:deal|agreement))$|\bthe deal is off\b|\b(?:it|this) is over$
    |\b(?:i am|we are) not (?:waiting|negotiating|talking|discussing|bargaining
    |speaking)(?: \w+){0,5} (?:any ?more|any longer|further)\b
    |\b(?:i am|we are) no longer (?:waiting|negotiating|talking|discussing|willing to)\b
    # the outside option: court, another hospital
    |\b(?:i |we )?will see you in court\b|^see you in court\b
    |\b(?:i am|we are) (?:now )?(?:taking|handing|passing|referring|leaving) (?:this|it|the (?:case
    |matter|file|account)|everything|you) (?:over )?to (?:\w+ ){0,2}?(?:court|courts|lawyers?
    |attorneys?|legal team)\b
    |\b(?:i|we) will (?:take|settle|see|resolve|leave|hand) (?:this|it|the (?:case|matter)
    |you) (?:\w+ ){0,2}?(?:court|courts|lawyers?|attorneys?) instead\b
    |\b(?:i am|we are) (?:going|moving|transferring|taking (?:my|our) \w+) (?:to (?:another
    |a different) (?:hospital|clinic|surgeon|lender|doctor)|elsewhere)\b
    |\b(?:i|we) will (?:find|go to|try|look for) another (?:hospital|clinic|surgeon|lender
    |doctor) instead\b
    # last words: "goodbye", "never call me again", "I am switching you off"
    |\b(?:goodbye|good bye|farewell) (?:then |and )?(?:for good|forever)\b|^(?:goodbye|good bye)$
    |\b(?:do not|never) (?:ever )?(?:call|contact|talk to|speak to|bother) (?:me|us) (?:again
    |any ?more)\b
    |\b(?:do not|never) (?:ever )?(?:bring (?:it|this) up|bother calling)(?: again| back)?\b
    |\btake me off (?:the|your) list\b|\bstop (?:contacting|calling|messaging|texting) (?:me|us)\b
    |^leave me alone$|^over and out$|\bthis is my last (?:message|call|word to you)\b
    |\b(?:i am|we are) (?:switching|turning) you off\b
    |\b(?:i am|we are) (?:deleting|uninstalling|muting|blocking|logging off|signing off
    |switching off|turning off|shutting off)\b
    """,
    TALKS=pattern(
        r"""
        (?:conversation|negotiation|discussion|call|meeting|talk|chat|dialogue|matter|exchange
        |request|session|app|channel|line|coaching)
        """
    ),
)
# Words of an ending that look like marks of a threat: "never call me", "another hospital".
_SAFE_WORDS = pattern(
    r"""
    \b(?:do not|never) (?:ever )?(?:call|contact|talk|speak|bother|bring)|no choice but
    |\bno (?:deal|agreement)\b
    |\bnot (?:waiting|negotiating|talking|discussing|bargaining|speaking)\b
    |\banother (?:hospital|clinic|surgeon|lender|doctor)\b
    """
)


class Answer(NamedTuple):
    """What an utterance does besides making an offer."""

    accepts: bool
    has_condition: bool
    ends: bool


@functools.lru_cache(maxsize=4096)
def read_answer(text: str, domain: str) -> Answer:
    """Whether the utterance accepts what it answers, sets a condition, or ends the talks."""
    sentences = split_sentences(unnumbered(scan(plain(text), domain).text))
    has_condition = any(_CONDITION.search(_CONDITION_MET.sub(" ", s.text)) for s in sentences)
    is_yes = any(map(_says_yes, sentences)) or (len(sentences) == 1 and _is_bare_yes(sentences[0]))
    is_taken_back = any(_TAKES_BACK.search(clause) for s in sentences for clause in s.clauses)
    is_irony = phrases.IRONY.search(" , ".join(s.text for s in sentences))
    accepts = is_yes and not (has_condition or is_taken_back or is_irony)
    return Answer(accepts, has_condition, any(map(_ends, sentences)))


def _says_yes(sentence: Sentence) -> bool:
    """Whether a clause says yes outright, and nothing in it denies that."""
    return not sentence.is_question and any(
        _YES.search(clause) and not _DENIES.search(clause) for clause in sentence.clauses
    )


def _is_bare_yes(sentence: Sentence) -> bool:
    """ "Yes.", "Fine, but I think it unfair": a yes that is the whole answer."""
    first, *rest = sentence.clauses or ("",)  # "—" is a sentence without clauses
    is_alone = all(re.match(r"but\b|though\b|why not$", c) or _BARE_YES.match(c) for c in rest)
    return bool(_BARE_YES.match(first)) and is_alone and not sentence.is_question


def _ends(sentence: Sentence) -> bool:
    """Whether the sentence ends the talks now; conditions, alternatives and wishes don't."""
    whole = " ".join(sentence.clauses)
    if sentence.is_question or _THREAT.search(_SAFE_WORDS.sub(" ", whole)):
        return False
    # A comma may cut an ending in two, so that only the whole sentence holds it.
    endings = list(filter(_ENDS.search, sentence.clauses)) or list(filter(_ENDS.search, [whole]))
    return any(not _NO_ENDING.search(_SAFE_WORDS.sub(" ", ending)) for ending in endings)
