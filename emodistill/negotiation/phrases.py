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
    r"impossible|unacceptable|unreasonable|unrealistic|unworkable|unfeasible|infeasible|"
    r"ridiculous|absurd|outrageous|insult\w*|joke|laughable|crazy|insane|nonsense|cruel|reckless|"
    r"dangerous|unfair|unthinkable|excessive|extreme|outlandish|off the table|"
    r"out of the question|out of reach|not (?:\w+ )?(?:acceptable|possible|feasible|realistic|"
    r"enough|reasonable|workable|fair|viable|sustainable|doable|survivable|safe|an option|"
    r"going to (?:work|happen)|good|on the table|something (?:i|we) can|what (?:i|we)|happening|"
    r"near|close|on|okay|fine|it|manageable|practical)|(?:far |way |much |simply |just |a bit |"
    r"a little )?too (?:long|short|much|far|late|early|soon|slow|tight|little|risky|many|high|"
    r"low|steep|quick|fast|aggressive|generous|optimistic|few)|(?:never|hardly|scarcely|"
    r"barely) enough|a bit much|doomed|death|deadly|fatal|lethal|kill\w*|ruin\w*|bankrupt\w*|"
    r"crush\w*|destroy\w*|sink|sinks|break (?:us|me)|unsustainable|untenable|disast\w+|"
    r"catastroph\w+|pushing it|hopeless|useless|pointless|madness|beyond (?:me|us|our|my|what)|"
    r"(?:more|longer|later|sooner|earlier|shorter|less|higher|further) than|guarantees?\b|"
    r"does not (?:work|help|cut it|do|fit|suit|leave|give)|do not (?:work|help|cut it|do|fit|"
    r"suit)|(?:will|would|can|could) not (?:work|do|be|happen|fly|help|fit|suit|save|cut|cover|"
    r"survive|hold|get|make|give|leave|last)|is no good|leaves? (?:me|us) unable|(?:is|was|"
    r"were) never (?:on|going|an)|leaves (?:me|us) (?:with )?(?:no|nothing)|no (?:good|help|use)|"
    r"offensive|horrif\w+|terrif\w+|scares?|worthless|unbearable|intolerable|inhumane|appalling|"
    r"pathetic|asking (?:far |way )?too much|a fantasy|hard to (?:accept|swallow)|a lot to ask|"
    r"shocking|unheard of|a non-?starter|a slap|feels? like (?:forever|an eternity)|an eternity|"
    r"forever|childish|hurts?|fails?|is where i draw|do(?:es)? nothing|for (?:babies|kids|"
    r"children|toddlers)|not (?:\w+ )?(?:in the cards|something)|i (?:would|will|could) (?:die|"
    r"drown|freeze|suffocate|fail|go under)|default"
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
    r"expected|expecting|think|claim|claimed|promised|estimated|told|tell|keep|kept|started|"
    r"moved|came|went|put|hope|hoped|hoping|talk|talked|talking|call|called|push|pushed|pushing|"
    r"prefer|stand|sit|are at|are still at|were at|are on|mean|meant|wish|wished|wrote|repeat|"
    r"repeated|stuck|quote)"
)

# The other side's value: "your offer of Q", "you asked for Q", "the Q you want".
QUOTED = re.compile(
    rf"\byour (?:\w+ ){{0,2}}?{THEIR_NOUN}(?: \w+){{0,5}}? Q\b"
    rf"|\byour (?:(?:own|full|last|latest|first|original|initial|previous|current|"
    rf"so-called) )*Q\b"
    rf"|\byou (?:(?:also|just|first|once|originally|initially|previously|already|earlier|still|"
    rf"now|had|have|only|really|are|were|so) )*{THEY_SAY}\b(?! (?:to (?:pay|settle|clear|be|have|"
    rf"commit|accept|agree|go|turn|sleep|hold|wait|get|move|do)|(?:i|we) (?:can|could|will|would|"
    rf"need)))(?: \w+){{0,7}}? Q\b"
    r"|\bQ(?: \w+){0,2}? (?:that |which )?(?:you|they|he|she) (?:\w+ )?"
    rf"{THEY_SAY}\b(?! to (?:pay|settle))"
    r"|\bQ (?:is|was|that is) what you\b|\bQ on your side\b|\bas for (?:\w+ )?Q\b"
    r"|\b(?:his|her|their) (?:\w+ )?Q\b|\b(?:heard|hear) (?:\w+ ){0,3}Q\b"
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
    rf"\b{TO_WHAT_THEY_SAID} (?!that Q)(?:\w+ ){{0,4}}?Q\b"
    r"|\bQ(?: \w+){0,4}? (?:works?|will work|is (?:fine|acceptable|okay|good|doable|agreed|fair|"
    r"reasonable|settled|manageable|perfect)|sounds (?:good|fair|fine|okay|reasonable)|suits|"
    r"it is|will do|can work|could work|is a deal)\b"
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
    r"|\bQ before (?:my|our|your|the)\b"
    r"|\b(?:extend|shorten|reduce|lower|cut|raise|miss|shave|trim|increase|stretch|delay\w*|"
    r"postpone\w*|differ|apart|add|save|late|early|off) (?:\w+ ){0,3}?by (?:\w+ )?Q\b"
    r"|\b(?:add|shave|trim|knock|take|cut|save|lose|gain|adding|shaving) (?:(?!to\b|at\b|in\b|"
    r"by\b|within\b|down\b)\w+ ){0,2}?Q(?: (?:off|more|extra|from)\b|$)"
    r"|\bQ (?:more|less|longer|shorter|sooner|earlier|later|faster|slower|extra|apart|off|"
    r"difference|early|short|shy)\b(?! or)"
    r"|\bbetween\b.*\b[Qq]\b.*\band\b.*\b[Qq]\b"
    r"|\b(?:usually|normally|typically|always|generally|last night|yesterday|used to|on average|"
    r"in the past|last (?:month|year|week|time)|every night)\b"
    r"|\b(?:most people|other patients|everyone|everybody|my (?:friends?|brother|sister|roommate|"
    r"classmates))\b.*\bQ\b|^after Q (?:your|the|my|our|it|memory)\b"
    r"|\b(?:drone|ambulance|battery|fire|flames?|flood\w*|water (?:level|ris|will|reach|peak|"
    r"reced)\w*|tide|aftershock|storm|smoke|helicopter|gas|crews?' shift|"
    r"fuel) (?:\w+ ){0,6}?Q\b(?! rescue)"
    r"|\b(?:recovery|rehab\w*|hospital stay|fasting|observation|surgery itself|operation itself|"
    r"warranty|lease|loan term|probation|trial|contract) (?:\w+ ){0,5}?Q\b"
    r"|\b(?:exam|class|classes|school|practice|bus|train|alarm|quiz|test|paper|essay|homework|"
    r"project|lecture|shift|game|match|breakfast|assignment|report|flight|rehearsal|interview|"
    r"dinner|movie|show|stream|party|presentation)(?: \w+){0,4}? (?:is|starts?|begins?|opens|"
    r"leaves|ends?|at|due|by|set for|rings|goes off)(?: \w+){0,2}? Q\b(?! lights)"
    r"|\bdue (?:\w+ ){0,2}?Q\b|\b(?:wake|waking|woke|get up|up again|alarm|"
    r"rise)(?: \w+){0,4}? Q\b"
    r"|\b(?:it is|clock says|clock is) (?:already|now|almost|nearly|past|only|barely|just|"
    r"way past|well past) (?:\w+ )?Q\b|^it is Q already\b"
    r"|\b(?:slept|sleeping|went to (?:bed|sleep)) (?:\w+ ){0,3}?Q\b"
)

# What follows if it does not work out: court, bankruptcy, death, a failed exam.
HARM = (
    r"(?:legal|court|sue|lawsuit|lawyers?|attorneys?|escalat\w*|foreclos\w*|repossess\w*|seiz\w*|"
    r"penalt\w*|interest|fees?|liquidat\w*|bankrupt\w*|default\w*|litigat\w*|file|collections?|"
    r"lose|die|dead|death|drown|collapse|fail|ruin\w*|shut down|close (?:my|our|the) doors|"
    r"go under|walk|worse|insolven\w*|fire|lay off|cannot|finished|suffer|hurt|complain|"
    r"report you|disaster|unbearable|give up|too late|exhausted|zombie|crash|consequences|"
    r"run out|no deal|end this|(?:can|could|will|would) not (?:survive|cope|make|last|manage|"
    r"afford|go on|recover|pass|function|stay|hold|keep))"
)

# A value inside a threat: "we file suit in Q".
CONSEQUENCE = re.compile(
    r"\b(?:legal action|court|sue|lawsuit|lawyers?|attorneys?|escalat\w*|foreclos\w*|"
    r"repossess\w*|seize|litigat\w*|file suit|penalties|interest (?:\w+ ){0,3}?(?:starts|accrues|"
    r"kicks)|credit bureau)\b(?: \w+){0,8}? Q\b"
    r"|\bQ(?: \w+){0,6}? (?:legal action|legal proceedings|in court|lawsuit|escalation)\b"
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
SUPPOSED = re.compile(r"^.*?\b(?:if|unless|provided) (?:you\b)?")

# "If you need Q, fine.": their value taken up.
GRANTED = re.compile(
    r"^(?:then |so )?(?:fine|okay|deal|agreed|so be it|you (?:can|may|will) have)\b"
)

# A verdict in the next clause or sentence: "Q? That is an insult."
ELSEWHERE = re.compile(r"^(?:that|this|it|which)\b")
ECHO = re.compile(
    r"^(?:what|only|just|a full|another|a whole|wait|sorry|oh|no|seriously|really| )*Q$"
)
DISMISSED = re.compile(
    rf"\b(?:not|never|no|seriously|serious|kidding|joking|really|{BAD}|{HARM})\b"
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
    r"limit|maximum|minimum|at most|at least|no later|up to|lights|bed|asleep|need\w*|team|"
    r"require\w*|pay|payment|it is|say|fine|okay|yes|done|possible|works?|give|get)\b"
)

# The speaker's own value from before: "I already offered Q".
EARLIER = re.compile(
    r"\b(?:i|we) (?:(?:already|just|only|had|have|first|originally|initially|even|"
    r"once) )*(?:offered|proposed|said|asked|started|gave|came|went|moved|wanted|suggested|"
    r"opened|hoped|told|conceded|requested|was|were|had|meet|met|made)\b.*\bQ\b"
    r"|\b(?:previous|earlier|original|first|initial|opening|old) (?:\w+ )?(?:of |was |at )?Q\b"
    r"|\bto meet you at Q\b"
)
