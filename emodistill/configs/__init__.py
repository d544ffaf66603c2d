"""The settings of every stage: one frozen dataclass each. Which defaults are the paper's, and which
are ours, is in docs/paper.md.

Free of jax, so that `--help` answers at once.
"""

from emodistill.configs.adapters import AdapterForm, ExportAdapterConfig, VerifyConfig
from emodistill.configs.base import (
    AUTO,
    DEFAULT_RUN,
    EMBEDDED,
    JUDGE_TASTES,
    JUDGE_VALIDITIES,
    SIMULATED,
    SIMULATED_MODELS,
    TRUTH,
    TYPED_COUNTERPARTIES,
    ApiConfig,
    Config,
    ExperimentConfig,
    Quantization,
    Split,
    home_expanded,
    require,
    setting,
)
from emodistill.configs.data import (
    GENERATED,
    ConvertConfig,
    DialogueConfig,
    EmotionReaderKind,
    ExportConfig,
    ImportConfig,
    JudgeConfig,
    PlanConfig,
    SweepConfig,
)
from emodistill.configs.on_policy import GRPOConfig, OnPolicyConfig, PPOConfig
from emodistill.configs.playing import (
    DEFAULT_CELL,
    DEFAULT_METHOD,
    EMBEDDED_TEMPERATURE,
    METHODS,
    TEMPERATURE,
    Deviation,
    EvaluateConfig,
    MatchConfig,
    OutcomeInterval,
    PairConfig,
    QuickstartConfig,
    ReplayConfig,
    ReportConfig,
    SequenceAverage,
    SimulatorConfig,
    TournamentConfig,
)
from emodistill.configs.preflight import PREFLIGHTS
from emodistill.configs.selectors import (
    DEFAULT_SELECTOR,
    SHIPPED,
    RewardKind,
    SelectorConfig,
    SelectorMethod,
    SpokenLabels,
)
from emodistill.configs.serving import ServeConfig
from emodistill.configs.studies import (
    ABLATIONS,
    STUDIES,
    EmotionStudy,
    LeaderboardStudy,
    StudyConfig,
)
from emodistill.configs.training import (
    AdapterConfig,
    ALoLConfig,
    AttentionForm,
    DPOConfig,
    EmotionSet,
    IQLConfig,
    IQLSignal,
    JPOConfig,
    JPOSignal,
    LearnerName,
    MemoryConfig,
    MeshShape,
    OnPolicySignal,
    Packing,
    QualityScore,
    RecordedRefinementConfig,
    RefinementConfig,
    Remat,
    SFTConfig,
    SFTSignal,
    StateKind,
)

CONFIGS: dict[str, type[Config]] = {
    cls.stage: cls
    for cls in (
        SweepConfig,
        JudgeConfig,
        IQLConfig,
        SelectorConfig,
        SFTConfig,
        JPOConfig,
        ALoLConfig,
        DPOConfig,
        GRPOConfig,
        PPOConfig,
        EvaluateConfig,
        ReplayConfig,
        TournamentConfig,
        ReportConfig,
        QuickstartConfig,
        SimulatorConfig,
        ExportAdapterConfig,
        VerifyConfig,
        ServeConfig,
        MemoryConfig,
        *STUDIES.values(),
    )
}
"""Section of a configuration file -> the settings that it holds."""
