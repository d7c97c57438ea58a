"""The study: train, extend, ask. What is done is never done again, so a study that was stopped goes on."""

from collections.abc import Sequence

import jax

from hybrid_jax.claim import Record, claim_folder
from hybrid_jax.config import ModelConfig
from hybrid_jax.data.config import DataConfig, SourceConfig
from hybrid_jax.data.token_shards import label_mask_path
from hybrid_jax.evaluation.ruler.report import Asked, all_asked, missing
from hybrid_jax.long_context.config import FAMILIES, METHODS, Family, LongContextConfig, Method, StageConfig
from hybrid_jax.long_context.corpus import Corpus, prepare_corpus, write_needles
from hybrid_jax.long_context.exam import Say, Scores, prepare_exam, read_scores, take_exam
from hybrid_jax.training.run_config import CheckpointConfig, RunConfig
from hybrid_jax.training.start import StartConfig
from hybrid_jax.training.trainer import train
from hybrid_jax.yaml_config import to_mapping

CONFIG_NAME = "config.yaml"
LABELS = {"olmo_hybrid": "OLMo Hybrid", "olmo3": "OLMo 3", "yarn": "YaRN", "drope": "DRoPE"}
# A mixture takes of a source as often as its share asks; the standard library is small.
_MAX_REPETITION = 1e6
# What is asked of trained models, and how: free to change between two starts in one folder.
_FREE = ("output_folder", "eval_batch_size", "lengths", "num_samples")


def run_study(config: LongContextConfig, say: Say, devices: Sequence[jax.Device] | None = None) -> Scores:
    """Do what the output folder lacks of the study, on ``devices`` or all there are, and return its scores.

    Raises:
        InputError: the folder holds another study, or as training and evaluation; before anything is trained where a
            question or the held-out text is too short, or the tokenizer is not the models'.
        OSError: a file cannot be read or written.
    """
    _claim_folder(config)
    corpus = prepare_corpus(config)
    exam = prepare_exam(config, corpus)
    scores = read_scores(config.output_folder)
    wanted: set[Asked] = set()
    for family in FAMILIES:
        for method in METHODS:
            name = f"{LABELS[family]}, {LABELS[method]}"
            asked = all_asked(
                name,
                config.tasks,
                config.lengths,
                exam.texts,
                num_samples=config.num_samples,
                seed=config.seed,
                dtype=config.models[family].dtype,
            )
            wanted.update(asked)
            if name in scores.positions and not missing(scores.cells, asked):
                continue
            say(f"{name}: training")
            train(pretraining_run(config, corpus, family), devices)
            model = train(extension_run(config, corpus, family, method), devices).model
            take_exam(config, exam, scores, name, asked, model, say)
    return scores._replace(cells=[cell for cell in scores.cells if cell[:-1] in wanted])


def pretraining_run(config: LongContextConfig, corpus: Corpus, family: Family) -> RunConfig:
    """The first stage of a model."""
    return _run(config, config.pretraining, corpus, config.pretrained(family), f"{family}/pretraining", None)


def extension_run(config: LongContextConfig, corpus: Corpus, family: Family, method: Method) -> RunConfig:
    """The second stage of a model by one method."""
    start = StartConfig(
        path=str(config.output_folder / f"{family}/pretraining"),
        optimizer_state=True,
        model_changes=("rope_parameters", "max_position_embeddings"),
    )
    return _run(
        config, config.extension, corpus, config.extended(family, method), f"{family}/{method}", start
    )


def _run(
    config: LongContextConfig,
    stage: StageConfig,
    corpus: Corpus,
    model: ModelConfig,
    name: str,
    start: StartConfig | None,
) -> RunConfig:
    needles = write_needles(config, stage, corpus)
    sources = {
        "text": SourceConfig(
            paths=corpus.shards if start is None else corpus.long_shards,
            ratio=1 - config.needle_ratio,
            max_repetition=_MAX_REPETITION,
        ),
        "needles": SourceConfig(
            paths=(str(needles),),
            label_mask_paths=(str(label_mask_path(needles)),),
            ratio=config.needle_ratio,
            max_repetition=_MAX_REPETITION,
        ),
    }
    return RunConfig(
        output_folder=config.output_folder / name,
        num_steps=stage.num_steps,
        batch_size=stage.batch_size,
        num_microbatches=stage.num_microbatches,
        init_seed=config.seed,
        start_from=start,
        model=model,
        data=DataConfig(
            sources=sources,
            num_tokens=stage.num_steps * stage.batch_size * stage.sequence_length,
            sequence_length=stage.sequence_length,
            seed=config.seed,
            packing="best_fit",
            long_documents="fragment",
        ),
        optimizer=config.optimizer,
        schedule=stage.schedule,
        checkpoint=CheckpointConfig(interval=200, keep_last=1),
    )


def _claim_folder(config: LongContextConfig) -> None:
    """Keep the configuration in the folder, and refuse one that holds another study."""
    claim_folder(
        config.output_folder / CONFIG_NAME,
        to_mapping(config),
        ("data/needles_*.npy",),  # written before anything is trained
        lambda found, saved: (_deciding(found), _deciding(saved)),
    )


def _deciding(record: Record) -> Record:
    """What decides what is trained."""
    return {name: value for name, value in record.items() if name not in _FREE}
