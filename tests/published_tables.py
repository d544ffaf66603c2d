"""The published tables: where they are, their headers, and a good row of each domain."""

import os
from pathlib import Path

import pytest

TABLES = Path(
    os.environ.get("EMODISTILL_TABLES")
    or Path(__file__).resolve().parents[1] / "../shared/data/emomas"
)
needs_tables = pytest.mark.skipif(
    not TABLES.is_dir(), reason="set EMODISTILL_TABLES to the folder of the published tables"
)
HEADERS = {
    "crad": "Creditor Name,Debtor Name,Credit Type,Original Amount (USD),"
    "Outstanding Balance (USD),Creditor Target Days,Debtor Target Days,Days Overdue,"
    "Purchase Purpose,Reason for Overdue,Business Sector,Last Payment Date,Collateral,"
    "Recovery Stage,Cash Flow Situation,Business Impact Description,Proposed Solution,"
    "Recovery Probability (%),Interest Accrued (USD)",
    "disaster": "Case_ID,Disaster_Type,Survivor_Condition,Estimated_Survivor_Endurance(minutes),"
    "Rescue_Team_ETA(minutes),Critical_Needs,Key_Negotiation_Argument_By_RoboDog",
    "hospital": "Case_ID,Patient_Age,Patient_Condition,Required_Surgery,Urgency_Level,"
    "Days_On_Waitlist,Preferred_Surgeon_Available,Recommended_Surgeon_Experience_Level,"
    "Surgeon_Availability_Reason,Risk_If_Delayed,Patient_Reason_For_Urgency,"
    "Hospital_Suggestion,Estimated_Time_Reduction_If_Accept_Junior_Surgeon(days),Decision_Point",
    "student": "Case_ID,Student_Age,Student_Background,Situation_Faced,Student_Feeling_Thought,"
    "Robots_Requested_Bedtime,Student_Wanted_Bedtime,Primary_Annoyance_Reason",
}
CRAD_ROW = (
    '"Stone, Reed and Co",Mill PLC,Trade Loan,20000.5,"15,700",{target},{anchor},133,Tax payments,'
    "Bad harvest,farming,2025-03-29 07:48:10.602368,None,Legal,Chronic Shortage,All is late.,"
    "Partial payment plan,55.66,686.49"
)
GOOD = {
    "crad": CRAD_ROW.format(target=12, anchor=90),
    "disaster": "1,Flood,Cold_and_wet,40,120,Rope, Light,“Stay calm, the boat comes.”",
    "hospital": "1,40,Torn tendon,Tendon repair,Medium,45,No,Senior (Hand),Fully booked,"
    "Stiff hand,Plays piano,Wait for a surgeon,30,Undecided",
    "student": '1,16,Runner,Race tomorrow,"Full of energy.",10:00 PM,1:30 AM,Not tired at all.',
}
