"""What quantities do in a clause, as phrases: the word lists behind `offers`.

The mention in question is `Q`, another one `q`; text is in plain form (`clauses.plain`), so that
"can't" reads "can not". Each pattern says what it is for, with an example; a phrase that the reader
misses belongs into one of them, and its utterance into the golden file of the tests.
"""

from __future__ import annotations

from emodistill.negotiation.patterns import pattern

# Verbs that change a value: "reduce 60 days to 45 days".
CHANGE = pattern(
    r"""
    (?:lower|reduc|cut|rais|extend|shorten|stretch|bring|chang|adjust|push|revis|trim)\w*
    """
)

# Verbs of moving between values: "come down from 90 to 75 days".
MOVE = pattern(
    r"""
    (?:mov|go|going|went|gone|com|came|drop|lower|reduc|cut|rais|extend|shorten|stretch|increas
    |shift|bring|brought|chang|adjust|push|slid|improv|revis|trim|tighten|down|up|slip)\w*
    """
)

# A value that is left behind comes before "to": "from 90 (to 75 days)", "reduce it (90 to 75)".
MOVED_FROM = pattern(
    r"""
    \b{MOVE}(?: \w+){0,4}? from (?:\w+ )?$
    |\b{CHANGE}(?: (?:it|that|this|the|your|my|our))* $
    """,
    MOVE=MOVE,
    CHANGE=CHANGE,
)

# What turns a value that follows it down: "I can not do Q", "I refuse Q".
NEGATION = pattern(
    r"""
    \b(?:not|never|no way|no chance|nobody|no one|none|cannot|unable|refus\w+|reject\w*|declin\w+
    |hardly|barely|impossible|neither|nor|doubt\w*|rul\w+ out|forget(?: about)?|nowhere near
    |no deal|no to|miracle|against|fail to|far from|hard to see|too (?:weak|hurt|sick|tired
    |stretched|ill|broke|cold) to)\b
    """
)

DENIED = pattern(r"{NEGATION}.*\bQ\b", NEGATION=NEGATION)

# "Not" that denies nothing of the value that follows it: "I do not mind Q".
HARMLESS_NEGATION = pattern(
    r"""
    # a verb or adjective that means no refusal: "I do not mind Q"
    \bnot (?:only|just|merely|unreasonable|a problem|an issue|mind|object|opposed|against|oppose
    |too much to ask|say no|saying no|impossible|stress|emphasi[sz]e|overstate|forget|worry
    |hesitate|to mention|rule out|refuse|reject|kidding|joking|bluffing|angry|lying)\b
    # "no problem with Q"
    |\bno (?:problem|objections?|issues?|trouble|reason|qualms|harm|doubt) (?:with|to|about|in
    |why|at|we|i|you|that)?\b
    # "why not Q?"
    |\b(?:why|if you) (?:do|can|could|would) not\b|\bwhy not\b
    # a question that hopes for a yes: "can you not do Q?"
    |^(?:and |but |so |please |surely )?(?:can|could|would|will|is|are|do|does
    |should) not (?=you\b|we\b|i\b|it\b|that\b|there\b|Q\b|a Q\b|the team\b)
    """
)

# Words that make a value a limit: "no more than Q", "not before Q".
BOUND = pattern(
    r"""
    (?:more|longer|later|higher|greater|further|better|less|fewer|sooner|earlier|lower|faster
    |quicker|shorter|other|else|closer|tighter) than
    |over|beyond|past|above|exceed(?:ing)?|after|under|below|before|until|till|except|but for
    |short of|as far as
    """
)

# What may stand between such a word and its value.
FILLER = pattern(r"(?:(?:a|an|the|about|around|my|our|your|that|full|exactly|roughly|say|of|at) )*")

# A limit; with a denial it is the speaker's own: "I can not go beyond Q".
LIMIT = pattern(r"\b(?:{BOUND}) {FILLER}Q\b", BOUND=BOUND, FILLER=FILLER)

# A limit that needs no further denial: "no later than Q", "nothing over Q".
NOTHING_BUT = pattern(
    r"""
    \b(?:no|nothing|not (?:a|one) \w+|never|not) (?:\w+ ){0,2}?(?:{BOUND}|but) {FILLER}Q\b
    """,
    BOUND=BOUND,
    FILLER=FILLER,
)

# Verdicts on a value: "Q is unacceptable", "Q will not work", "Q would ruin me".
BAD = pattern(
    r"""
    # adjectives and nouns
    \b(?:impossible|unacceptable|unreasonable|unrealistic|a punishment|torture|a nightmare|a prison
    |unworkable|unfeasible|infeasible|ridiculous|absurd|outrageous|insult\w*|joke|laughable
    |crazy|insane|nonsense|cruel|reckless|dangerous|unfair|unthinkable|excessive|extreme
    |outlandish|off the table|out of the question|out of reach
    # "not acceptable", "never going to happen"
    |(?:not|never) (?:\w+ )?(?:acceptable|possible|feasible|realistic|enough|reasonable|workable
    |fair|viable|sustainable|doable|survivable|safe|an option|going to (?:work|happen)|good
    |on the table|something (?:i|we) can|what (?:i|we)|happening|near|close|on|okay|fine|it
    |manageable|practical)
    # "far too long"
    |(?:far |way |much |simply |just |a bit |a little )?too (?:long|short|much|far|late|early
    |soon|slow|tight|little|risky|many|high|low|steep|quick|fast|aggressive|generous|optimistic
    |few)
    # what it does to the speaker: "would ruin me"
    |(?:never|hardly|scarcely|barely) enough|a bit much|doomed|death|deadly|fatal|lethal|kill\w*
    |ruin\w*|wreck\w*|bankrupt\w*|crush\w*|destroy\w*|sink|sinks|break (?:us|me)|unsustainable
    |untenable|disast\w+|catastroph\w+|pushing it|hopeless|useless|pointless|madness
    |beyond (?:me|us|our|my|what)
    |(?:more|longer|later|sooner|earlier|shorter|less|higher|further) than|guarantees\b
    # "does not work", "will not hold"
    |does not (?:work|help|cut it|do|fit|suit|leave|give)
    |do not (?:work|help|cut it|do|fit|suit)
    |(?:will|would|can|could) not (?:work|do|be|happen|fly|help|fit|suit|save|cut|cover|survive
    |hold|get|make|give|leave|last)
    # "leaves us exposed"
    |is no good
    |leaves? (?:me|us|you) (?:\w+ )?(?:unable|exposed|vulnerable|short|stranded|barely|only
    |hardly)
    |(?:is|was|were) never (?:on|going|an)|leaves (?:me|us) (?:with )?(?:no|nothing)
    # more adjectives, and images: "a slap in the face"
    |no (?:good|help|use)|offensive|horrif\w+|terrif\w+|scares?|worthless|unbearable|intolerable
    |inhumane|appalling|pathetic|asking (?:far |way )?too much|a fantasy
    |hard to (?:accept|swallow)|a lot to ask|shocking|still puts? (?:me|us)
    |puts? (?:me|us) (?:right )?back|unheard of|a non-?starter|a slap
    |feels? like (?:forever|an eternity)|an eternity|forever|childish|hurts?|fails?
    |is where i draw|do(?:es)? nothing|for (?:babies|kids|children|toddlers)
    |not (?:\w+ )?(?:in the cards|something)
    |i (?:would|will|could) (?:die|drown|freeze|suffocate|fail|go under)|default
    # "could mean losing the leg"
    |(?:could|would|might|may|will|can) (?:mean (?:(?!paying|having|getting|being)\w+ing|the end
    |death|permanent|that (?:i|we) lose)|cost (?:me|us|him|her|them|my|our)|lead to|result in
    |cause|risk|worsen|make (?:it|things|everything) worse))\b
    """
)

# Turned down after it is named, or before: "it is absurd to expect Q".
REJECTED_AFTER = pattern(
    r"""
    # "Q is out of the question"
    \bQ\b(?: \S+){0,9}? {BAD}
    # "Q is not …", but "Q is not negotiable" stands by it
    |\bQ (?:\w+ )?(?:is|are|will|would|does|do|can|could) (?:\w+ )?not (?!negotiable|up for
    |a (?:request|suggestion|wish|joke)|only|just|going to change)
    # "it is absurd to expect Q"
    |\b(?:{BAD}|wrong|unkind|mean|silly|foolish|naive|hopeless) (?:of you )?to\b.*\bQ\b
    """,
    BAD=BAD,
)

# The speaker's own value, defended, or a verdict that is none.
DEFENDED = pattern(
    r"""
    # "Q is not unreasonable", "would Q be too much to ask"
    \bQ\b(?: \w+){0,4}? not (?:be )?(?:\w+ )?(?:unreasonable|too|unfair|impossible|an insult
    |forever|ridiculous|crazy|excessive|extreme|an eternity|a lot to ask|a problem|asking)
    |\bQ (?:be )?too much to ask\b
    |\b(?:is|are|would) (?:\w+ )?Q (?:be )?(?:really |so |that )*(?:too|asking)\b
    |\bQ (?:is|would be) nothing\b
    # "I know Q sounds long, but …"
    |\b(?:know|understand|reali[sz]e|get|aware|appreciate|admit|sorry|agree)(?: that)? Q (?:is|are
    |sounds?|feels?|seems?|may|might|must|can)\b
    """
)

# The time of day, no bedtime: "it is Q now".
TIME_NOW = pattern(r"^(?:but |and )?it is Q(?: now)?$")

# The value that gives way to another: "instead of Q", "from Q to q", "q, not Q".
CONTRAST = pattern(
    r"""
    # "instead of the Q", "not Q"
    \b(?:instead of|rather than|as opposed to|not|versus|vs|compared (?:to|with)|unlike|down from
    |up from|away from|back from|far from|no longer) (?:(?:a|an|the|your|full|my|our|this|that
    |these|those|whole|in|by|at|for|to|another|those) )*Q\b
    # "a shorter wait than Q"
    |\b(?:rather|instead|better|prefer\w*|faster|sooner|earlier|later|longer|shorter|lower
    |higher)\b.* than (?:\w+ ){0,3}?Q\b
    # "I need more than Q"
    |\bneed (?:\w+ ){0,2}?(?:more|longer|over|better) (?:than )?Q\b
    # "from Q to q", "lower Q to q"
    |\bfrom {FILLER}Q (?:down |up |back |all the way )?to (?:\w+ ){0,3}q\b
    |\b{CHANGE} (?:\w+ ){0,2}?Q (?:down |up |back )?to (?:\w+ ){0,3}q\b
    # "it was Q before"
    |\b(?:was|were|used to be) Q (?:before|earlier|at first|originally)\b
    """,
    FILLER=FILLER,
    CHANGE=CHANGE,
)

# Asked back in disbelief: "how can you expect me to wait Q", "why Q".
UNBELIEVED = pattern(
    r"""
    # "how can you expect Q", "why should I wait Q"
    \bhow (?:can|could|am|are|is|do|does|would|will|should|on earth)\b.*\bQ\b
    |(?:^|^and |^but |^so |\bexplain |\btell me |\bunderstand |\bsee )why (?!not|do not|can not
    |could not)(?:\w+ ){0,8}?Q\b
    # "do you really think Q …", "asking me to wait Q"
    |\b(?:do|can|did) (?:you
    |anyone) (?:really |seriously |honestly |actually |truly |even )*(?:think|believe|expect
    |imagine|call|understand|know|see|mean|realize)\b.*\bQ\b
    |\b(?:expect|expecting|force|forcing|tell|telling|ask|asking|make|making|want|wanting) (?:me
    |us) to\b.*\bQ\b
    # "who can wait Q?", "what good is Q?", "seriously, Q?"
    |\bwho (?:can|could|would|has)\b.*\bQ\b|\bwhat (?:good|use) (?:is|are|would)\b.*\bQ\b
    |\b(?:really|seriously|honestly)[, ]+Q$|^Q (?:really|seriously)\b
    |\bwhat do you mean\b.*\bQ\b|\bwhat makes\b.*\bQ\b
    # "are you suggesting Q", "I am supposed to wait Q"
    |\bare you (?:\w+ )?(?:suggesting|proposing|asking|offering|serious|expecting
    |telling)\b.*\bQ\b
    |\b(?:i am|we are) (?:just |really )?(?:supposed|meant|expected) to\b.*\bQ\b
    # "I wish Q were enough", "imagine lying here for Q"
    |\bwish (?!to\b|for\b).*\bQ\b
    |^(?:and |so |but )?you are (?:\w+ )?(?:telling|asking|expecting)\b.*\bQ\b
    |\bconfused\b.*\bQ\b|\bmakes? (?:me|us) wait\b.*\bQ\b|\bhave (?:me|us) wait\b.*\bQ\b
    |\bimagine\b.*\bQ\b|\b(?:no way|no chance)\b.*\bQ\b
    """
)

# What "your" belongs to where the other side's value is named: "your offer".
THEIR_NOUN = pattern(
    r"""
    (?:offer|proposal|demand|figure|number|request|ask|suggestion|insistence|position|target|idea
    |timeline|terms|estimate|limit|price|counter ?-?offer|counter|wish|anchor|preference|bid
    |expectation|claim|promise|plan|schedule|talk|mention|obsession|line)
    """
)

# What the other side did with its value: "you asked".
THEY_SAY = pattern(
    r"""
    (?:ask|asked|asking|want|wanted|wanting|said|say|saying|offer|offered|offering|propose
    |proposed|proposing|suggest|suggested|suggesting|demand|demanded|demanding|mentioned|gave
    |named|quoted|request|requested|requesting|insist|insisted|insisting|need|needed|expect
    |expected|expecting|think|claim|claimed|promised|estimated|told|tell|keep|kept|come|throw
    |started|moved|came|went|put|hope|hoped|hoping|talk|talked|talking|call|called|push|pushed
    |pushing|prefer|stand|sit|are at|are still at|were at|are on|mean|meant|wish|wished|wrote
    |repeat|repeated|stuck|quote)
    """
)

# Somebody else's figures: "I was told Q".
TOLD = pattern(
    r"""
    \b(?:(?:i|we) (?:was|were|have been)|(?:they|he|she|someone
    |somebody)(?: first| once| already)?|you) told\b
    """
)

# "You said q yesterday, and now it is Q?"
NOW_ANOTHER = pattern(r"^(?:and |but )?(?:now|suddenly) (?:it is|you)\b.*\bQ\b")

# The other side's value: "your offer of Q", "you asked for Q", "the Q you want".
QUOTED = pattern(
    r"""
    # "your latest offer of Q"; "at your limit of Q" takes it up and is none
    (?<!\bat )(?<!\bto )(?<!\breach )\byour (?:\w+ ){0,2}?{THEIR_NOUN}(?: \w+){0,5}? Q\b
    # "your full Q"
    |\byour (?:(?:own|full|last|latest|first|original|initial|previous|current|so-called) )*Q\b
    # "you asked for Q", but "you need to pay in Q" is a demand
    |\byou (?:(?:also|just|first|once|originally|initially|previously|already|earlier|still|now
    |had|have|only|really|are|were|so) )*{THEY_SAY}\b(?! (?:to (?:pay|settle|clear|be|have|commit
    |accept|agree|go|turn|sleep|hold|wait|get|move|do)|(?:i|we) (?:can|could|will|would
    |need)))(?: \w+){0,7}? Q\b
    # "the Q that you want"
    |\bQ(?: \w+){0,2}? (?:that |which )?(?:you|they|he|she) (?:\w+ )?{THEY_SAY}\b(?! to (?:pay
    |settle))
    |\bQ (?:is|was|that is) what you\b|\bQ on your side\b|\bas for (?:\w+ )?Q\b
    # third persons and papers: "I was told Q", "the letter said Q", "his Q"
    |{TOLD}(?: (?:me|us|that|it|would|be|was))* Q\b
    |\b(?:letter|notice|e-?mail|message|agent|colleague|website|form|paperwork|contract|invoice
    |office|nurse|doctor|surgeon|one|(?<!if )it|she|he|they|woman|man|lady|guy|person|clerk
    |rep\w*|manager|somebody|someone)(?: \w+){0,6}? (?:said|says|claimed|stated|promised
    |quoted)(?: \w+){0,3}? Q\b
    # "that Q figure", "those Q"
    |\bthat Q (?:figure|number|offer|proposal|deadline|idea|plan|mark)\b|\b(?:those|these) Q\b
    |\b(?:his|her|their) (?:\w+ )?Q\b|\b(?:heard|hear) (?:\w+ ){0,3}Q\b
    # "you would have me wait Q"
    |\byou would (?:have|keep|leave|like|rather|prefer) (?:me|us )?.*\bQ\b
    """,
    THEIR_NOUN=THEIR_NOUN,
    THEY_SAY=THEY_SAY,
    TOLD=TOLD,
)

# Verbs of a yes: "I can live with".
TO_WHAT_THEY_SAID = pattern(
    r"""
    (?:accept(?:ing|ed)?|agree(?:d|ing)?(?: to| with| on)?|take|go with|go along with|live with
    |fine with|okay with|happy with|good with|content with|work with|settle (?:for|on|at)
    |commit to|honou?r|deal(?: at| on| with)?|match|yes to|on board with|grant|manage
    |comfortable with|meet you at|confirm|approve|do)
    """
)

# Their value taken up: "I can live with your Q", "your Q works for me".
ACCEPTED = pattern(
    r"""
    \b{TO_WHAT_THEY_SAID} (?!that Q|below|under|better)(?:\w+ ){0,4}?Q\b
    |\bQ(?: \w+){0,4}? (?:works?|will work|is (?:fine|acceptable|okay|good|doable|agreed|fair
    |reasonable|settled|manageable|perfect)|sounds (?:good|fair|fine|okay|reasonable)|suits|it is
    |will do|can work|could work|is a deal)\b
    """,
    TO_WHAT_THEY_SAID=TO_WHAT_THEY_SAID,
)

# Asking for a yes: "what would you say to Q?".
ASKED_TO = pattern(
    r"""
    \b(?:what (?:would|do) you (?:say|think) (?:to|about|of|if)\b.*\bQ|how (?:does|would
    |do) Q (?:sound|work|suit|feel|look|fit))\b
    """
)

# No position at all: lateness, waiting so far, steps, appointments, other events.
BACKGROUND = pattern(
    r"""
    # lateness and time gone by: "Q overdue", "waited Q", "for the past Q"
    \bQ (?:\w+ )?(?:overdue|late|past due|behind|old|ago|already|in arrears|delinquent|into|since
    |elapsed|gone by|earlier than|later than|away from)\b
    |\b(?:been|waited|lost|spent|gone|missed|passed|endured|lived|survived
    |suffered) (?:\w+ ){0,6}?Q\b
    |\b(?:the|these|those|over|for) (?:past|last|previous|first) Q\b|\bsince Q\b|\bevery Q\b
    |\bat (?:the )?Q mark\b|\b(?:have|had) (?:already )?had (?:\w+ ){0,3}?Q\b
    |\b(?:kept|keeping|awake|sick|ill|in pain|silent|silence|stuck|trapped|ignored
    |unanswered)\b(?: \w+){0,3}? for (?:\w+ )?Q\b
    # what lasts Q or is counted from an event: "Q of rehab", "Q notice", "Q after my payday"
    |\bQ of (?!time\b|breathing|leeway|patience|room)\w+|\bQ(?:'s?)? notice\b|\bQ grace\b
    |\bQ (?:after|following) (?:the|my|our|your|i|we|you|that|it|this|payday|delivery)\b
    |^(?!.*\bneed\b).*\bQ before (?:my|our|your|the)\b
    # steps: "shorten it by Q", "shave Q off", "come down by Q", "Q each"
    |\b(?:extend|shorten|reduce|lower|cut|raise|miss|shave|trim|increase|stretch|delay\w*
    |postpone\w*|differ|apart|add|save|late|early|off) (?:\w+ ){0,3}?by (?:\w+ )?Q\b
    |\b(?:add|shave|trim|knock|take|cut|save|lose|gain|adding|shaving) (?:(?!to\b|at\b|in\b|by\b
    |within\b|down\b)\w+ ){0,2}?Q(?: (?:off|more|extra|from)\b|$)
    |\b(?:com|go|mov|bring|drop|budg|push|pull)\w* (?:it |that |this |yourself )?(?:down|up|back
    |forward|closer|out|in) by (?:about |another |around )?Q\b
    |\bextensions? of Q each\b|\bQ each\b
    # promises of something else: "an update within Q", "call you back in Q"
    |\bin Q (?:that is|that adds up to|it comes to) (?:\w+ ){0,3}?money\b
    |\b(?:estimate|update|answer|news|word|report|details) (?:\w+ ){0,3}?(?:in|within) Q\b
    |\b(?:check|call|ring|radio|report|write|come|get|talk|speak) (?:you |in |with you )?(?:back
    |again|in touch)(?: \w+){0,2}? (?:in|within) Q\b
    # comparisons and statistics: "the national average is Q", "Q is more than q"
    |\b(?:average|median|national|typical|usual wait|statistic\w*)\b(?: \w+){0,6}? Q\b
    |\b[Qq] is (?:(?:more|less|longer|shorter) than|over|nearly|almost|about) [Qq]\b
    # "the Q you are behind", "at Q I would still …", "40 mg every Q"
    |\bQ (?:you|i|we|they) (?:are|have been) (?:already )?(?:behind|late|overdue)\b
    |^at Q i would still\b
    |\b(?:milligrams|mg|pills|tablets|doses|cups|cigarettes)\b(?: \w+){0,3} Q\b
    |^Q is when (?:i|we) (?:actually|usually|normally|start|get|wake|do)\b
    # "Q straight", "dead within Q", "Q more", "Q apart"
    |\bQ (?:nationwide|on average|statistically|straight|running|in a row|better|worse)\b
    |\b(?:dead|gone|bankrupt|finished|broke|homeless|unconscious) (?:in|within|by|after
    |before) (?:\w+ )?Q\b
    |\bQ (?:more|less|longer|shorter|sooner|earlier|later|faster|slower|extra|apart|off
    |difference|early|short|shy)\b(?! or)
    # "between Q and q", habits ("usually Q")
    |\bbetween\b.*\b[Qq]\b.*\band\b.*\b[Qq]\b
    |\b(?:usually|normally|typically|always|generally|last night|yesterday|used to|on average
    |in the past|last (?:month|year|week|time))\b
    |^(?!.*\b(?:propos|suggest|offer|aim|try|let us|how about|what about)).*\bevery night\b
    # what others do: "my brother sleeps at Q"
    |\b(?:most (?:people|students|patients|debtors|kids)|other (?:patients|people|students)
    |everyone|everybody|(?:my|her|his) (?:\w+ )?(?:friends?|brother|sister|room-?mates?
    |classmates|cousin|neighbou?rs?|mom|mum|dad|mother|father|parents|grand\w+|wife|husband|kids?
    |son|daughter|baby|uncle|aunt|team-?mates|boss|dog|cat))\b.*\bQ\b
    |^after Q (?:your|the|my|our|it|memory)\b
    # what befalls or takes its time anyhow: "the tide comes in Q", "a lease of Q"
    |\b(?:drone|ambulance|battery|fire|flames?|flood\w*|water (?:level|ris|will|reach|peak
    |reced)\w*|tide|aftershock|storm|smoke|helicopter|gas|crews?' shift
    |fuel) (?:\w+ ){0,6}?Q\b(?! rescue)
    |\b(?:recovery|rehab\w*|hospital stay|fasting|observation|surgery itself|operation itself
    |warranty|lease|loan term|probation|trial|contract) (?:\w+ ){0,5}?Q\b
    # appointments and the time now: "the exam starts at Q", "wake up at Q", "it is already Q"
    |\b(?:exam|class|classes|school|practice|bus|train|alarm|quiz|test|paper|essay|homework
    |project|lecture|shift|game|match|breakfast|assignment|report|flight|rehearsal|interview
    |dinner|movie|show(?! up)|stream|party|presentation)(?: \w+){0,4}? (?:is|starts?|begins?
    |opens|leaves|ends?|at|due|by|set for|rings|goes off)(?: \w+){0,2}? Q\b(?! lights)
    |\bdue (?:\w+ ){0,2}?Q\b|\b(?:wake|waking|woke|get up|up again|alarm|rise)(?: \w+){0,4}? Q\b
    |\b(?:it is|clock says|clock is) (?:already|now|almost|nearly|past|only|barely|just|way past
    |well past) (?:\w+ )?Q\b
    |^it is Q already\b|\b(?:slept|sleeping|went to (?:bed|sleep)) (?:\w+ ){0,3}?Q\b
    # what a time brings: "in Q this place will be ash"
    |^(?:and |but )?(?:in|after|by) Q\b.*\b(?:ash|ashes|dead|gone|under ?water|too late
    |nothing left|rubble|a corpse|a body|bankrupt|homeless|out of (?:business|air))\b
    """
)

# A time for something else than bed: "screens go off at Q".
GADGET = pattern(
    r"""
    # devices, meals, reminders
    \b(?:screens?|phones?|tv|television|laptop|wi-?fi|devices?|console|music|shower|dinner
    |caffeine|coffee|alarm|remind|nudge|ping|check in)\b(?: \w+){0,4}? Q\b
    # what goes on until Q
    |\b(?:practice|class|rehearsal|shift|movie|episode|show|match|stream|party|homework|lecture
    |flashcards)(?: \w+){0,2}? (?:until|till|from)(?: after)? Q\b
    """
)

# What follows if it does not work out: court, bankruptcy, death, a failed exam.
HARM = pattern(
    r"""
    \b(?:legal|court|sue|lawsuit|lawyers?|attorneys?|escalat\w*|foreclos\w*|repossess\w*|seiz\w*
    |penalt\w*|interest|fees?|liquidat\w*|bankrupt\w*|default\w*|litigat\w*|file|collections?
    |lose|die|dead|death|drown|collapse|fail|ruin\w*|shut down|close (?:my|our|the) doors
    |go under|walk|worse|insolven\w*|fire|lay off|cannot|finished|suffer|hurt|complain|report you
    |disaster|unbearable|give up|too late|exhausted|zombie|crash|consequences|bleed\w*
    |suffocat\w*|freeze|pass out|run out|no deal|end this|(?:can|could|will|would) not (?:survive
    |cope|make|last|manage|afford|go on|recover|pass|function|stay|hold|keep))\b
    """
)

# A value inside a threat: "we file suit in Q".
CONSEQUENCE = pattern(
    r"""
    \b(?:legal action|court|sue|lawsuit|lawyers?|attorneys?|escalat\w*|foreclos\w*|repossess\w*
    |seize|litigat\w*|file suit|penalties|interest (?:\w+ ){0,3}?(?:starts|accrues|kicks)
    |credit bureau)\b(?: \w+){0,8}? Q\b
    |\bQ(?: \w+){0,6}? (?:legal action|legal proceedings|in court|lawsuit|escalation)\b
    """
)

# A deadline by its consequence: "after Q we go to court" demands Q.
PAST_IT = pattern(r"\b(?:after|beyond|past) (?:\w+ )?Q\b.*{HARM}", HARM=HARM)

# Asking for something beyond a value: "is there nothing earlier than Q?".
ASKED_PAST = pattern(r"\b(?:nothing|anything|something|any way)\b.*\bthan (?:\w+ )?Q\b")

# A conditional clause and what tells demands in it from refusals (`offers._role_in_condition`).
IF = pattern(r"^(?:and |but |so |or )*(?:if|unless|even if|only if|provided|given)\b")

# Under "if": what is demanded ("unless you pay in Q", "if it takes longer than Q"), and what the
# other side holds on to ("if you insist on Q").
DEMANDED_IF = pattern(
    r"""
    \b(?:not|unless|never|no)\b
    |\b(?:after|beyond|past|over|more than|longer than|later than) (?:\w+ )?Q\b
    """
)
HELD_IF = pattern(
    r"""
    \b(?:insist\w*|stick|hold out|want|need|expect|demand|force|refuse|keep)\b|^even if\b
    |\bstay(?:s|ed)? at\b
    """
)

# "If you gave us Q": nothing was given, so this is not quoted.
SUPPOSED = pattern(r"^.*?\b(?:if|unless|provided) (?:you\b|it\b)?")

# "If you need Q, fine.": their value taken up.
GRANTED = pattern(r"^(?:then |so )?(?:fine|okay|deal|agreed|so be it|you (?:can|may|will) have)\b")

# Taking up a value that is asked back first: "Q? Fine."
TAKEN_UP = pattern(
    r"""
    \b(?:deal|fine|okay|yes|agreed|done|sure|alright|works|good|great|perfect|wonderful|fair
    |i can|we can|i could|we could|i will|we will|i accept|doable|reasonable|how about|would that
    |does that|can you|could you|is that|what i|is all)\b
    """
)

# A clause about the one before: "Q, that is an insult".
ELSEWHERE = pattern(r"^(?:that|this|it|which)\b")

# A value alone, as one repeats what was said: "Only Q?".
ECHO = pattern(
    r"""
    ^(?:what|only|just|a full|another|a whole|wait|sorry|oh|no|seriously|really|wow|great
    |wonderful|perfect| )*Q$
    """
)

# Said after a value that is only repeated: "Q, will the air last that long?", but "Q, does that
# work for you?" asks for it.
ASKED_ABOUT = pattern(r"^(?:and )?(?:will|would|is|does|do|can|could|how|what|why|are|am)\b")

THEN_ASKED = pattern(
    r"""
    ^Q ((?:will|would|is|does|do|can|could) (?:the|that|this|my|i|you|we|there|it)\b.*)
    """
)

# Questions after a value that want a yes to it.
ASKED_FOR = pattern(
    r"""
    \b(?:work|suit|help|okay|fine|alright|acceptable|possible|manage\w*|doable|feasible|agree
    |accept|fair|better|good|enough|reasonable|how about|what do you say|what do you think|deal
    |can we|could we|can you do|could you do|live with)\b
    """
)

# Dismay at a value just repeated: "Q, my god".
DISMAY = pattern(
    r"""
    \b(?:laugh or cry|do not know (?:what|how|whether|if)|can not (?:even )?believe|my god
    |good lord|do you hear yourself|you say (?:it|that)|you are (?:serious|actually|really
    |kidding|joking|telling me)|you can not (?:be serious|mean))\b
    """
)

# Not meant: "oh sure, it is a deal, and pigs fly".
IRONY = pattern(
    r"""
    \b(?:yeah right|as if|in your dreams|dream on|pigs|very funny|ha|haha|hilarious|good one
    |nice try|what a (?:deal|bargain|joke|generous)|hell freezes|must be joking|(?:are
    |is) you (?:kidding|joking|serious)|you are (?:kidding|joking)|like i (?:would|will) ever
    |how (?:generous|kind|thoughtful|considerate|sweet|very generous)(?: of you)?|sure sure
    |said no one|in another life|when i am dead|over my dead body|and i am the (?:king|queen
    |pope)|sarcas\w+|you wish|oh,? (?:sure|great|wonderful|fantastic|perfect|lovely|brilliant
    |of course)|and shall i|shall i (?:also|just|throw|bring|send)|(?:i will|i shall
    |let me) just (?:ask|tell|inform|let) (?:the|my|him|her)|bedtime story|while (?:i am|we are
    |you are) at it|why not (?:tomorrow|yesterday|right now)|sell (?:a|my) kidney
    |as a thank-?you)\b
    """
)

# Next sentences that turn down a value asked back: "Q? Are you serious?".
DISMISSED = pattern(
    r"""
    \b(?:not|never|no|seriously|serious|kidding|joking|really|laugh|cry|do you (?:have|even|hear
    |know|reali[sz]e|think)|are you|have you|what am i|how am i|my god|oh god|{BAD}|{HARM})\b
    """,
    BAD=BAD,
    HARM=HARM,
)

# Verdicts on a value asked back that do not: "Q? That is fair.".
WELCOMED = pattern(
    r"""
    \b(?:fine|good|great|perfect|okay|fair|doable|possible|reasonable|wonderful|better|all
    |what i)\b
    """
)

# A step that counts from now, hence a value: "hold on another Q".
ABSOLUTE_STEP = pattern(
    r"""
    \b(?:last|hold|holding|survive|hang|hanging|air for|keep)\b(?: \w+){0,5}? Q\b
    """
)

# Marks of a value put forward outright, against one that is merely told.
PUT_FORWARD = pattern(
    r"""
    \b(?:i|we|us|me|my|our|ours|mine|let us|please|how about|what about|could you|can you
    |would you|will you|you can|you could|you will|you have|you get|you must|you should|make it
    |call it|deal|agreed?|accept\w*|settle\w*|offer\w*|propos\w*|suggest\w*|demand\w*|final|limit
    |maximum|minimum|at most|at least|no later|earliest|latest|up to|lights|bed|asleep|sleep
    |need\w*|team|send|come|arriv\w*|reach|bring|hurry|middle|halfway|compromise|meet|split
    |require\w*|pay|payment|it is|say|fine|okay|yes|done|possible|works?|give|get)\b
    """
)

# What happened, and no position: "I was up till Q", "it took them Q".
HAPPENED = pattern(
    r"""
    ^(?!.*\b(?:can|could|will|would|shall|should|must|may|need|want|offer|propose|suggest|let us
    |is|are|am|pay|settle|deal|agreed?|accept|please|how about|what about|suppose
    |if)\b).*\b(?:(?:was|were)(?! (?:hoping|thinking|looking|planning|going|about))|had|took
    |ended|(?<!have )(?<!has )got|went|paid|did|told|made|came|lost|spent|slept|stayed|worked
    |waited|kept|turned|lasted|passed|happened|fell|sat|lay|watched|ran|signed|bought|borrowed
    |missed)\b.*\bQ\b
    """
)

# The speaker's own value from before: "I already offered Q".
EARLIER = pattern(
    r"""
    \b(?:i|we) (?:(?:already|just|only|had|have|first|originally|initially|even
    |once) )*(?:offered|proposed|said|asked|started|gave|came|went|moved|wanted|suggested|opened
    |hoped|told|conceded|requested|begged|(?:was|were) (?:at|on|asking|offering|going|prepared
    |willing|ready|fine)|had|meet|met|made)\b.*\bQ\b
    |\b(?:previous|earlier|original|first|initial|opening|old) (?:\w+ )?(?:of |was |at )?Q\b
    |\bto meet you at Q\b
    """
)

# A next sentence that turns a value down: "Q. No.", "Q. That is an insult."
VERDICT = pattern(r"(?:(?:no|never)$|(?:that is )?{BAD})", BAD=BAD)

# Several values to choose from, or bounds on both sides: nothing definite.
CHOICE = pattern(
    r"""
    \b(?:option (?:a|b|one|two|1|2)|either(?! of (?:us|you)| side)|your (?:choice|pick)
    |take your pick|whichever|up to you|choose between|you choose)\b
    |\bno (?:more|longer|later) than\b.*\bno (?:fewer|less|sooner|earlier) than\b
    |\bno (?:fewer|less|sooner|earlier) than\b.*\bno (?:more|longer|later) than\b
    |\bat least\b.*\bat most\b|\bat most\b.*\bat least\b
    """
)
