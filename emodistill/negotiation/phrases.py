"""What quantities do in a clause, as phrases: the word lists behind `offers`.

The mention in question is `Q`, another one `q`; text is in plain form (`clauses.plain`), so that
"can't" reads "can not". Each entry says what it is for, with an example; a phrase that a reader
misses belongs into one of these lists, and its utterance into the golden file of the tests.
"""

from __future__ import annotations

import re

# Verbs that change a value: "reduce 60 days to 45 days".
CHANGE = r"(?:lower|reduc|cut|rais|extend|shorten|stretch|bring|chang|adjust|push|revis|trim)\w*"

# Verbs of moving between values: "come down from 90 to 75 days".
MOVE = (
    r"(?:mov|go|going|went|gone|com|came|drop|lower|reduc|cut|rais|extend|shorten|stretch|"
    r"increas|shift|bring|brought|chang|adjust|push|slid|improv|revis|trim|tighten|down|up|"
    r"slip)\w*"
)

# What turns a value that follows it down: "I can not do Q", "I refuse Q".
NEGATION = (
    r"\b(?:not|never|no way|no chance|nobody|no one|none|cannot|unable|refus\w+|reject\w*|"
    r"declin\w+|hardly|barely|impossible|neither|nor|doubt\w*|rul\w+ out|forget(?: about)?|"
    r"nowhere near|no deal|no to|miracle|against|fail to|far from|hard to see|too (?:weak|hurt|"
    r"sick|tired|stretched|ill|broke|cold) to)\b"
)

# "Not" that denies nothing of the value that follows it: "I do not mind Q".
HARMLESS_NEGATION = re.compile(
    r"\bnot (?:only|just|merely|unreasonable|a problem|an issue|mind|object|opposed|against|"
    r"oppose|too much to ask|say no|saying no|impossible|stress|emphasi[sz]e|overstate|forget|"
    r"worry|hesitate|to mention|rule out|refuse|reject|kidding|joking|bluffing|angry|lying)\b"
    r"|\bno (?:problem|objections?|issues?|trouble|reason|qualms|harm|doubt) (?:with|to|about|in|"
    r"why|at|we|i|you|that)?\b"
    r"|\b(?:why|if you) (?:do|can|could|would) not\b|\bwhy not\b"
    r"|^(?:and |but |so |please |surely )?(?:can|could|would|will|is|are|do|does|"
    r"should) not (?=you\b|we\b|i\b|it\b|that\b|there\b|Q\b|a Q\b|the team\b)"
)

# Words that make a value a limit: "no more than Q", "not before Q".
BOUND = (
    r"(?:more|longer|later|higher|greater|further|better|less|fewer|sooner|earlier|lower|faster|"
    r"quicker|shorter|other|else|closer|tighter) than|over|beyond|past|above|exceed(?:ing)?|"
    r"after|under|below|before|until|till|except|but for|short of|as far as"
)
FILLER = r"(?:(?:a|an|the|about|around|my|our|your|that|full|exactly|roughly|say|of|at) )*"

# A limit; with a denial it is the speaker's own: "I can not go beyond Q".
LIMIT = re.compile(rf"\b(?:{BOUND}) {FILLER}Q\b")

# A limit that needs no further denial: "no later than Q", "nothing over Q".
NOTHING_BUT = re.compile(
    rf"\b(?:no|nothing|not (?:a|one) \w+|never|not) (?:\w+ ){{0,2}}?(?:{BOUND}|but) {FILLER}Q\b"
)

# Verdicts on a value: "Q is unacceptable", "Q will not work", "Q would ruin me".
BAD = (
    r"impossible|unacceptable|unreasonable|unrealistic|a punishment|torture|a nightmare|a prison|"
    r"unworkable|unfeasible|infeasible|"
    r"ridiculous|absurd|outrageous|insult\w*|joke|laughable|crazy|insane|nonsense|cruel|reckless|"
    r"dangerous|unfair|unthinkable|excessive|extreme|outlandish|off the table|"
    r"out of the question|out of reach|(?:not|never) (?:\w+ )?(?:acceptable|possible|feasible|"
    r"realistic|"
    r"enough|reasonable|workable|fair|viable|sustainable|doable|survivable|safe|an option|"
    r"going to (?:work|happen)|good|on the table|something (?:i|we) can|what (?:i|we)|happening|"
    r"near|close|on|okay|fine|it|manageable|practical)|(?:far |way |much |simply |just |a bit |"
    r"a little )?too (?:long|short|much|far|late|early|soon|slow|tight|little|risky|many|high|"
    r"low|steep|quick|fast|aggressive|generous|optimistic|few)|(?:never|hardly|scarcely|"
    r"barely) enough|a bit much|doomed|death|deadly|fatal|lethal|kill\w*|ruin\w*|wreck\w*|"
    r"bankrupt\w*|"
    r"crush\w*|destroy\w*|sink|sinks|break (?:us|me)|unsustainable|untenable|disast\w+|"
    r"catastroph\w+|pushing it|hopeless|useless|pointless|madness|beyond (?:me|us|our|my|what)|"
    r"(?:more|longer|later|sooner|earlier|shorter|less|higher|further) than|guarantees\b|"
    r"does not (?:work|help|cut it|do|fit|suit|leave|give)|do not (?:work|help|cut it|do|fit|"
    r"suit)|(?:will|would|can|could) not (?:work|do|be|happen|fly|help|fit|suit|save|cut|cover|"
    r"survive|hold|get|make|give|leave|last)|is no good|leaves? (?:me|us|you) (?:\w+ )?(?:unable|"
    r"exposed|"
    r"vulnerable|short|stranded|barely|only|hardly)|(?:is|was|"
    r"were) never (?:on|going|an)|leaves (?:me|us) (?:with )?(?:no|nothing)|no (?:good|help|use)|"
    r"offensive|horrif\w+|terrif\w+|scares?|worthless|unbearable|intolerable|inhumane|appalling|"
    r"pathetic|asking (?:far |way )?too much|a fantasy|hard to (?:accept|swallow)|a lot to ask|"
    r"shocking|still puts? (?:me|us)|puts? (?:me|us) (?:right )?back|unheard of|a non-?starter|"
    r"a slap|feels? like (?:forever|an eternity)|an eternity|"
    r"forever|childish|hurts?|fails?|is where i draw|do(?:es)? nothing|for (?:babies|kids|"
    r"children|toddlers)|not (?:\w+ )?(?:in the cards|something)|i (?:would|will|could) (?:die|"
    r"drown|freeze|suffocate|fail|go under)|default|(?:could|would|might|may|will|can) (?:mean "
    r"(?:(?!paying|having|getting|being)\w+ing|the end|death|permanent|that (?:i|we) lose)|"
    r"cost (?:me|us|him|her|them|my|our)|"
    r"lead to|result in|cause|risk|worsen|make (?:it|things|everything) worse)"
)

# Turned down after it is named, or before: "it is absurd to expect Q".
REJECTED_AFTER = re.compile(
    rf"\bQ\b(?: \S+){{0,9}}? (?:{BAD})\b"
    r"|\bQ (?:\w+ )?(?:is|are|will|would|does|do|can|could) (?:\w+ )?not (?!negotiable|up for|"
    r"a (?:request|suggestion|wish|joke)|only|just|going to change)"
    rf"|\b(?:{BAD}|wrong|unkind|mean|silly|foolish|naive|hopeless) (?:of you )?to\b.*\bQ\b"
)

# Verdicts that are none: "Q is not unreasonable", "would Q be too much to ask".
NOT_BAD = re.compile(
    r"\bQ\b(?: \w+){0,4}? not (?:be )?(?:\w+ )?(?:unreasonable|too|unfair|impossible|an insult|"
    r"forever|ridiculous|crazy|excessive|extreme|an eternity|a lot to ask|a problem|asking)"
    r"|\bQ (?:be )?too much to ask\b"
    r"|\b(?:is|are|would) (?:\w+ )?Q (?:be )?(?:really |so |that )*(?:too|asking)\b"
    r"|\bQ (?:is|would be) nothing\b"
)

# The speaker's own value, defended: "I know Q sounds long, but …".
CONCEDED = re.compile(
    r"\b(?:know|understand|reali[sz]e|get|aware|appreciate|admit|sorry|agree)(?: that)? Q (?:is|"
    r"are|sounds?|feels?|seems?|may|might|must|can)\b"
)

# The time of day, no bedtime: "it is Q now".
TIME_NOW = re.compile(r"^(?:but |and )?it is Q(?: now)?$")

# The value that gives way to another: "instead of Q", "from Q to q", "q, not Q".
CONTRAST = re.compile(
    r"\b(?:instead of|rather than|as opposed to|not|versus|vs|compared (?:to|with)|unlike|"
    r"down from|up from|away from|back from|far from|no longer) (?:(?:a|an|the|your|full|my|our|"
    r"this|that|these|those|whole|in|by|at|for|to|another|those) )*Q\b"
    r"|\b(?:rather|instead|better|prefer\w*|faster|sooner|earlier|later|longer|shorter|lower|"
    r"higher)\b.* than (?:\w+ ){0,3}?Q\b"
    r"|\bneed (?:\w+ ){0,2}?(?:more|longer|over|better) (?:than )?Q\b"
    rf"|\bfrom {FILLER}Q (?:down |up |back |all the way )?to (?:\w+ ){{0,3}}q\b"
    rf"|\b{CHANGE} (?:\w+ ){{0,2}}?Q (?:down |up |back )?to (?:\w+ ){{0,3}}q\b"
    r"|\b(?:was|were|used to be) Q (?:before|earlier|at first|originally)\b"
)

# Asked back in disbelief: "how can you expect me to wait Q", "why Q".
UNBELIEVED = re.compile(
    r"\bhow (?:can|could|am|are|is|do|does|would|will|should|on earth)\b.*\bQ\b"
    r"|(?:^|^and |^but |^so |\bexplain |\btell me |\bunderstand |\bsee )why (?!not|do not|"
    r"can not|could not)(?:\w+ ){0,8}?Q\b"
    r"|\b(?:do|can|did) (?:you|anyone) (?:really |seriously |honestly |actually |truly |"
    r"even )*(?:think|believe|expect|imagine|call|understand|know|see|mean|realize)\b.*\bQ\b"
    r"|\b(?:expect|expecting|force|forcing|tell|telling|ask|asking|make|making|want|"
    r"wanting) (?:me|us) to\b.*\bQ\b"
    r"|\bwho (?:can|could|would|has)\b.*\bQ\b|\bwhat (?:good|use) (?:is|are|would)\b.*\bQ\b"
    r"|\b(?:really|seriously|honestly)[, ]+Q$|^Q (?:really|seriously)\b|"
    r"\bwhat do you mean\b.*\bQ\b"
    r"|\bwhat makes\b.*\bQ\b|\bare you (?:\w+ )?(?:suggesting|proposing|asking|offering|serious|"
    r"expecting|telling)\b.*\bQ\b"
    r"|\b(?:i am|we are) (?:just |really )?(?:supposed|meant|expected) to\b.*\bQ\b"
    r"|\bwish (?!to\b|for\b).*\bQ\b"
    r"|^(?:and |so |but )?you are (?:\w+ )?(?:telling|asking|expecting)\b.*\bQ\b"
    r"|\bconfused\b.*\bQ\b|\bmakes? (?:me|us) wait\b.*\bQ\b|\bhave (?:me|us) wait\b.*\bQ\b"
    r"|\bimagine\b.*\bQ\b|\b(?:no way|no chance)\b.*\bQ\b"
)
THEIR_NOUN = (
    r"(?:offer|proposal|demand|figure|number|request|ask|suggestion|insistence|position|target|"
    r"idea|timeline|terms|estimate|limit|price|counter ?-?offer|counter|wish|anchor|preference|"
    r"bid|expectation|claim|promise|plan|schedule|talk|mention|obsession|line)"
)
THEY_SAY = (
    r"(?:ask|asked|asking|want|wanted|wanting|said|say|saying|offer|offered|offering|propose|"
    r"proposed|proposing|suggest|suggested|suggesting|demand|demanded|demanding|mentioned|gave|"
    r"named|quoted|request|requested|requesting|insist|insisted|insisting|need|needed|expect|"
    r"expected|expecting|think|claim|claimed|promised|estimated|told|tell|keep|kept|come|throw|"
    r"started|"
    r"moved|came|went|put|hope|hoped|hoping|talk|talked|talking|call|called|push|pushed|pushing|"
    r"prefer|stand|sit|are at|are still at|were at|are on|mean|meant|wish|wished|wrote|repeat|"
    r"repeated|stuck|quote)"
)

# Somebody else's figures: "I was told Q".
TOLD = re.compile(
    r"\b(?:(?:i|we) (?:was|were|have been)|(?:they|he|she|someone|somebody)(?: first| once|"
    r" already)?|you) told\b"
)

# "You said q yesterday, and now it is Q?"
NOW_ANOTHER = re.compile(r"^(?:and |but )?(?:now|suddenly) (?:it is|you)\b.*\bQ\b")

# The other side's value: "your offer of Q", "you asked for Q", "the Q you want".
QUOTED = re.compile(
    rf"(?<!\bat )(?<!\bto )(?<!\breach )\byour (?:\w+ ){{0,2}}?{THEIR_NOUN}(?: \w+){{0,5}}? Q\b"
    rf"|\byour (?:(?:own|full|last|latest|first|original|initial|previous|current|"
    rf"so-called) )*Q\b"
    rf"|\byou (?:(?:also|just|first|once|originally|initially|previously|already|earlier|still|"
    rf"now|had|have|only|really|are|were|so) )*{THEY_SAY}\b(?! (?:to (?:pay|settle|clear|be|have|"
    rf"commit|accept|agree|go|turn|sleep|hold|wait|get|move|do)|(?:i|we) (?:can|could|will|would|"
    rf"need)))(?: \w+){{0,7}}? Q\b"
    r"|\bQ(?: \w+){0,2}? (?:that |which )?(?:you|they|he|she) (?:\w+ )?"
    rf"{THEY_SAY}\b(?! to (?:pay|settle))"
    r"|\bQ (?:is|was|that is) what you\b|\bQ on your side\b|\bas for (?:\w+ )?Q\b"
    rf"|{TOLD.pattern}(?: (?:me|us|that|it|would|be|was))* Q\b"
    r"|\b(?:letter|notice|e-?mail|message|agent|colleague|website|form|paperwork|contract|invoice|"
    r"office|nurse|doctor|surgeon|one|(?<!if )it|she|he|they|woman|man|lady|guy|person|clerk|"
    r"rep\w*|manager|somebody|someone)(?: \w+){0,6}? (?:said|says|claimed|stated|promised|quoted)"
    r"(?: \w+){0,3}? Q\b"
    r"|\bthat Q (?:figure|number|offer|proposal|deadline|idea|plan|mark)\b"
    r"|\b(?:those|these) Q\b|\b(?:his|her|their) (?:\w+ )?Q\b|\b(?:heard|hear) (?:\w+ ){0,3}Q\b"
    r"|\byou would (?:have|keep|leave|like|rather|prefer) (?:me|us )?.*\bQ\b"
)
TO_WHAT_THEY_SAID = (
    r"(?:accept(?:ing|ed)?|agree(?:d|ing)?(?: to| with| on)?|take|go with|go along with|"
    r"live with|fine with|okay with|happy with|good with|content with|work with|settle (?:for|on|"
    r"at)|commit to|honou?r|deal(?: at| on| with)?|match|yes to|on board with|grant|manage|"
    r"comfortable with|meet you at|confirm|approve|do)"
)

# Their value taken up: "I can live with your Q", "your Q works for me".
ACCEPTED = re.compile(
    rf"\b{TO_WHAT_THEY_SAID} (?!that Q|below|under|better)(?:\w+ ){{0,4}}?Q\b"
    r"|\bQ(?: \w+){0,4}? (?:works?|will work|is (?:fine|acceptable|okay|good|doable|agreed|fair|"
    r"reasonable|settled|manageable|perfect)|sounds (?:good|fair|fine|okay|reasonable)|suits|"
    r"it is|will do|can work|could work|is a deal)\b"
)

# Asking for a yes: "what would you say to Q?".
ASKED_TO = re.compile(
    r"\b(?:what (?:would|do) you (?:say|think) (?:to|about|of|if)\b.*\bQ|"
    r"how (?:does|would|do) Q "
    r"(?:sound|work|suit|feel|look|fit))\b"
)

# No position at all: lateness, waiting so far, steps, appointments, other events.
BACKGROUND = re.compile(
    r"\bQ (?:\w+ )?(?:overdue|late|past due|behind|old|ago|already|in arrears|delinquent|into|"
    r"since|elapsed|gone by|earlier than|later than|away from)\b"
    r"|\b(?:been|waited|lost|spent|gone|missed|passed|endured|lived|survived|"
    r"suffered) (?:\w+ ){0,6}?Q\b"
    r"|\b(?:the|these|those|over|for) (?:past|last|previous|first) Q\b|\bsince Q\b|\bevery Q\b|"
    r"\bat (?:the )?Q mark\b"
    r"|\b(?:have|had) (?:already )?had (?:\w+ ){0,3}?Q\b"
    r"|\b(?:kept|keeping|awake|sick|ill|in pain|silent|silence|stuck|trapped|ignored|"
    r"unanswered)\b(?: \w+){0,3}? for (?:\w+ )?Q\b"
    r"|\bQ of (?!time\b|breathing|leeway|patience|room)\w+|\bQ(?:'s?)? notice\b|\bQ grace\b"
    r"|\bQ (?:after|following) (?:the|my|our|your|i|we|you|that|it|this|payday|delivery)\b"
    r"|^(?!.*\bneed\b).*\bQ before (?:my|our|your|the)\b"
    r"|\b(?:extend|shorten|reduce|lower|cut|raise|miss|shave|trim|increase|stretch|delay\w*|"
    r"postpone\w*|differ|apart|add|save|late|early|off) (?:\w+ ){0,3}?by (?:\w+ )?Q\b"
    r"|\b(?:add|shave|trim|knock|take|cut|save|lose|gain|adding|shaving) (?:(?!to\b|at\b|in\b|"
    r"by\b|within\b|down\b)\w+ ){0,2}?Q(?: (?:off|more|extra|from)\b|$)"
    r"|\b(?:com|go|mov|bring|drop|budg|push|pull)\w* (?:it |that |this |yourself )?(?:down|up|back|"
    r"forward|closer|out|in) by (?:about |another |around )?Q\b"
    r"|\bextensions? of Q each\b|\bQ each\b|\bin Q (?:that is|that adds up to|it comes to) "
    r"(?:\w+ ){0,3}?money\b"
    r"|\b(?:estimate|update|answer|news|word|report|details) (?:\w+ ){0,3}?(?:in|within) Q\b"
    r"|\b(?:check|call|ring|radio|report|write|come|get|talk|speak) (?:you |in |with you )?(?:back|"
    r"again|in touch)(?: \w+){0,2}? (?:in|within) Q\b"
    r"|\b(?:average|median|national|typical|usual wait|statistic\w*)\b(?: \w+){0,6}? Q\b"
    r"|\b[Qq] is (?:(?:more|less|longer|shorter) than|over|nearly|almost|about) [Qq]\b"
    r"|\bQ (?:you|i|we|they) (?:are|have been) (?:already )?(?:behind|late|overdue)\b"
    r"|^at Q i would still\b"
    r"|\b(?:milligrams|mg|pills|tablets|doses|cups|cigarettes)\b(?: \w+){0,3} Q\b"
    r"|^Q is when (?:i|we) (?:actually|usually|normally|start|get|wake|do)\b"
    r"|\bQ (?:nationwide|on average|statistically|straight|running|in a row|better|worse)\b"
    r"|\b(?:dead|gone|bankrupt|finished|broke|homeless|unconscious) (?:in|within|by|after|before) "
    r"(?:\w+ )?Q\b"
    r"|\bQ (?:more|less|longer|shorter|sooner|earlier|later|faster|slower|extra|apart|off|"
    r"difference|early|short|shy)\b(?! or)"
    r"|\bbetween\b.*\b[Qq]\b.*\band\b.*\b[Qq]\b"
    r"|\b(?:usually|normally|typically|always|generally|last night|yesterday|used to|on average|"
    r"in the past|last (?:month|year|week|time))\b"
    r"|^(?!.*\b(?:propos|suggest|offer|aim|try|let us|how about|what about)).*\bevery night\b"
    r"|\b(?:most (?:people|students|patients|debtors|kids)|other (?:patients|people|students)|"
    r"everyone|everybody|(?:my|her|his) (?:\w+ )?(?:friends?|brother|sister|room-?mates?|"
    r"classmates|cousin|neighbou?rs?|mom|mum|dad|mother|father|parents|grand\w+|wife|husband|kids?|"
    r"son|daughter|baby|uncle|aunt|team-?mates|boss|dog|cat))\b.*\bQ\b|^after Q (?:your|the|my|"
    r"our|it|memory)\b"
    r"|\b(?:drone|ambulance|battery|fire|flames?|flood\w*|water (?:level|ris|will|reach|peak|"
    r"reced)\w*|tide|aftershock|storm|smoke|helicopter|gas|crews?' shift|"
    r"fuel) (?:\w+ ){0,6}?Q\b(?! rescue)"
    r"|\b(?:recovery|rehab\w*|hospital stay|fasting|observation|surgery itself|operation itself|"
    r"warranty|lease|loan term|probation|trial|contract) (?:\w+ ){0,5}?Q\b"
    r"|\b(?:exam|class|classes|school|practice|bus|train|alarm|quiz|test|paper|essay|homework|"
    r"project|lecture|shift|game|match|breakfast|assignment|report|flight|rehearsal|interview|"
    r"dinner|movie|show(?! up)|stream|party|presentation)(?: \w+){0,4}? (?:is|starts?|begins?|"
    r"opens|"
    r"leaves|ends?|at|due|by|set for|rings|goes off)(?: \w+){0,2}? Q\b(?! lights)"
    r"|\bdue (?:\w+ ){0,2}?Q\b|\b(?:wake|waking|woke|get up|up again|alarm|"
    r"rise)(?: \w+){0,4}? Q\b"
    r"|\b(?:it is|clock says|clock is) (?:already|now|almost|nearly|past|only|barely|just|"
    r"way past|well past) (?:\w+ )?Q\b|^it is Q already\b"
    r"|\b(?:slept|sleeping|went to (?:bed|sleep)) (?:\w+ ){0,3}?Q\b"
)

# A time for something else than bed: "screens go off at Q".
GADGET = re.compile(
    r"\b(?:screens?|phones?|tv|television|laptop|wi-?fi|devices?|console|music|shower|dinner|"
    r"caffeine|coffee|alarm|remind|nudge|ping|check in)\b(?: \w+){0,4}? Q\b"
    r"|\b(?:practice|class|rehearsal|shift|movie|episode|show|match|stream|party|homework|lecture|"
    r"flashcards)(?: \w+){0,2}? (?:until|till|from)(?: after)? Q\b"
)

# What follows if it does not work out: court, bankruptcy, death, a failed exam.
HARM = (
    r"(?:legal|court|sue|lawsuit|lawyers?|attorneys?|escalat\w*|foreclos\w*|repossess\w*|seiz\w*|"
    r"penalt\w*|interest|fees?|liquidat\w*|bankrupt\w*|default\w*|litigat\w*|file|collections?|"
    r"lose|die|dead|death|drown|collapse|fail|ruin\w*|shut down|close (?:my|our|the) doors|"
    r"go under|walk|worse|insolven\w*|fire|lay off|cannot|finished|suffer|hurt|complain|"
    r"report you|disaster|unbearable|give up|too late|exhausted|zombie|crash|consequences|"
    r"bleed\w*|suffocat\w*|freeze|pass out|run out|no deal|end this|(?:can|could|will|"
    r"would) not (?:survive|cope|make|last|manage|"
    r"afford|go on|recover|pass|function|stay|hold|keep))"
)

# A value inside a threat: "we file suit in Q".
CONSEQUENCE = re.compile(
    r"\b(?:legal action|court|sue|lawsuit|lawyers?|attorneys?|escalat\w*|foreclos\w*|"
    r"repossess\w*|seize|litigat\w*|file suit|penalties|interest (?:\w+ ){0,3}?(?:starts|accrues|"
    r"kicks)|credit bureau)\b(?: \w+){0,8}? Q\b"
    r"|\bQ(?: \w+){0,6}? (?:legal action|legal proceedings|in court|lawsuit|escalation)\b"
)

# What a time brings: "in Q this place will be ash".
BRINGS = re.compile(
    r"^(?:and |but )?(?:in|after|by) Q\b.*\b(?:ash|ashes|dead|gone|under ?water|too late|"
    r"nothing left|"
    r"rubble|a corpse|a body|bankrupt|homeless|out of (?:business|air))\b"
)

# A deadline by its consequence: "after Q we go to court" demands Q.
PAST_IT = re.compile(rf"\b(?:after|beyond|past) (?:\w+ )?Q\b.*\b{HARM}\b")

# Asking for something beyond a value: "is there nothing earlier than Q?".
ASKED_PAST = re.compile(r"\b(?:nothing|anything|something|any way)\b.*\bthan (?:\w+ )?Q\b")

# A conditional clause and what tells demands in it from refusals (`offers._in_condition`).
IF = re.compile(r"^(?:and |but |so |or )*(?:if|unless|even if|only if|provided|given)\b")
DENIED_IF = re.compile(r"\b(?:not|unless|never|no)\b")
DEADLINE_IF = re.compile(
    r"\b(?:after|beyond|past|over|more than|longer than|later than) (?:\w+ )?Q\b"
)
HELD_IF = re.compile(
    r"\b(?:insist\w*|stick|hold out|want|need|expect|demand|force|refuse|keep)\b|^even if\b|"
    r"\bstay(?:s|ed)? at\b"
)

# "If you gave us Q": nothing was given, so this is not quoted.
SUPPOSED = re.compile(r"^.*?\b(?:if|unless|provided) (?:you\b|it\b)?")

# "If you need Q, fine.": their value taken up.
GRANTED = re.compile(
    r"^(?:then |so )?(?:fine|okay|deal|agreed|so be it|you (?:can|may|will) have)\b"
)

# Taking up a value that is asked back first: "Q? Fine."
TAKEN_UP = re.compile(
    r"\b(?:deal|fine|okay|yes|agreed|done|sure|alright|works|good|great|perfect|wonderful|fair|"
    r"i can|we can|i could|we could|i will|we will|i accept|doable|reasonable|how about|would that|"
    r"does that|can you|could you|is that|what i|is all)\b"
)

# A verdict in the next clause or sentence: "Q? That is an insult."
ELSEWHERE = re.compile(r"^(?:that|this|it|which)\b")
ECHO = re.compile(
    r"^(?:what|only|just|a full|another|a whole|wait|sorry|oh|no|seriously|really|wow|great|"
    r"wonderful|perfect| )*Q$"
)

# Said after a value that is only repeated: "Q, will the air last that long?", but "Q, does that
# work for you?" asks for it.
ASKED_ABOUT = re.compile(r"^(?:and )?(?:will|would|is|does|do|can|could|how|what|why|are|am)\b")
THEN_ASKED = re.compile(
    r"^Q ((?:will|would|is|does|do|can|could) (?:the|that|this|my|i|you|we|there|it)\b.*)"
)
ASKED_FOR = re.compile(
    r"\b(?:work|suit|help|okay|fine|alright|acceptable|possible|manage\w*|doable|feasible|agree|"
    r"accept|fair|better|good|enough|reasonable|how about|what do you say|what do you think|deal|"
    r"can we|could we|can you do|could you do|live with)\b"
)
DISMAY = re.compile(
    r"\b(?:laugh or cry|do not know (?:what|how|whether|if)|can not (?:even )?believe|my god|"
    r"good lord|do you hear yourself|you say (?:it|that)|you are (?:serious|actually|"
    r"really|kidding|joking|telling me)|you can not (?:be serious|mean))\b"
)

# Not meant: "oh sure, it is a deal, and pigs fly".
IRONY = re.compile(
    r"\b(?:yeah right|as if|in your dreams|dream on|pigs|very funny|ha|haha|hilarious|good one|"
    r"nice try|what a (?:deal|bargain|joke|generous)|hell freezes|must be joking|(?:are|is) you "
    r"(?:kidding|joking|serious)|you are (?:kidding|joking)|like i (?:would|will) ever|"
    r"how (?:generous|kind|thoughtful|considerate|sweet|very generous)(?: of you)?|sure sure|"
    r"said no one|in another life|when i am dead|over my dead body|and i am the (?:king|queen|"
    r"pope)|sarcas\w+|you wish|oh,? (?:sure|great|wonderful|fantastic|perfect|lovely|brilliant|"
    r"of course)|and shall i|shall i (?:also|just|throw|bring|send)|(?:i will|i shall|let me) "
    r"just (?:ask|tell|inform|let) (?:the|my|him|her)|bedtime story|while (?:i am|we are|you are)"
    r" at it|why not (?:tomorrow|yesterday|right now)|sell (?:a|my) kidney|as a thank-?you)\b"
)
DISMISSED = re.compile(
    rf"\b(?:not|never|no|seriously|serious|kidding|joking|really|laugh|cry|do you (?:have|even|"
    rf"hear|know|reali[sz]e|think)|are you|have you|what am i|how am i|my god|oh god|{BAD}|"
    rf"{HARM})\b"
)
WELCOMED = re.compile(
    r"\b(?:fine|good|great|perfect|okay|fair|doable|possible|reasonable|wonderful|better|all|"
    r"what i)\b"
)

# A step that counts from now, hence a value: "hold on another Q".
ABSOLUTE_STEP = re.compile(
    r"\b(?:last|hold|holding|survive|hang|hanging|air for|keep)\b(?: \w+){0,5}? Q\b"
)

# Marks of a value put forward outright, against one that is merely told.
PUT_FORWARD = re.compile(
    r"\b(?:i|we|us|me|my|our|ours|mine|let us|please|how about|what about|could you|can you|"
    r"would you|will you|you can|you could|you will|you have|you get|you must|you should|make it|"
    r"call it|deal|agreed?|accept\w*|settle\w*|offer\w*|propos\w*|suggest\w*|demand\w*|final|"
    r"limit|maximum|minimum|at most|at least|no later|earliest|latest|up to|lights|bed|asleep|"
    r"sleep|"
    r"need\w*|team|send|come|arriv\w*|reach|bring|hurry|middle|halfway|compromise|meet|split|"
    r"require\w*|pay|payment|it is|say|fine|okay|yes|done|possible|works?|give|get)\b"
)

# What happened, and no position: "I was up till Q", "it took them Q".
HAPPENED = re.compile(
    r"^(?!.*\b(?:can|could|will|would|shall|should|must|may|need|want|offer|propose|suggest|let us|"
    r"is|are|am|pay|settle|deal|agreed?|accept|please|how about|what about|suppose|if)\b).*\b(?:"
    r"(?:was|were)(?! (?:hoping|thinking|looking|planning|going|about))|had|took|ended|"
    r"(?<!have )(?<!has )got|went|paid|did|told|"
    r"made|came|lost|spent|slept|stayed|worked|waited|kept|turned|"
    r"lasted|passed|happened|fell|sat|lay|watched|ran|signed|bought|borrowed|missed)\b.*\bQ\b"
)

# The speaker's own value from before: "I already offered Q".
EARLIER = re.compile(
    r"\b(?:i|we) (?:(?:already|just|only|had|have|first|originally|initially|even|"
    r"once) )*(?:offered|proposed|said|asked|started|gave|came|went|moved|wanted|suggested|"
    r"opened|hoped|told|conceded|requested|begged|(?:was|were) (?:at|on|asking|offering|"
    r"going|prepared|willing|ready|fine)|had|meet|met|made)\b.*\bQ\b"
    r"|\b(?:previous|earlier|original|first|initial|opening|old) (?:\w+ )?(?:of |was |at )?Q\b"
    r"|\bto meet you at Q\b"
)
