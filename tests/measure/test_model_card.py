"""What a model card says, and what it must never say."""

from dataclasses import replace

from agentrft.measure.model_card import Check, ModelCard, model_card

CARD = ModelCard(
    name="desk",
    format="merged",
    stored="bfloat16",
    beside=frozenset({"tools.json", "spec"}),
    base="smollm2-135m",
    base_files={"model.safetensors": "ab12"},
    license="Apache-2.0",
    methods=[("supervised", {"steps": 50, "trainer": {"adapter": {"rank": 16}}})],
    run_id="run-1",
    seed=2,
    steps=50,
    metrics={"loss": 0.25},
    files={"train": {"name": "train.jsonl", "sha256": "cd34"}},
    spec_hash="5bec",
    grader={
        "type": "endpoint",
        "url": "https://me:hush@example.org/grade?key=hush",
        "headers": {"X-Key": "hush"},
    },
    stages=[
        {
            "name": "warm start",
            "measured": {
                "tasks": 200,
                "pass_at_1": {"value": 0.41, "low": 0.344, "high": 0.479},
                "score": {"value": 0.415, "low": 0.35, "high": 0.484},
                "tool_calls": {"value": 2.26, "low": 2.15, "high": 2.38},
                "sampled_tokens": {"value": 100, "low": 96, "high": 104},
            },
        },
        {"name": "reinforcement", "measured": None},
    ],
    identity=0.012,
    checks=[
        Check(
            read_by="transformers",
            tokens=38,
            difference=1e-5,
            bound=0.005,
            shortfall=0.0,
            arrived=0.998,
        )
    ],
    versions={"torch": "2.13"},
    caveats=["The grader did not pass its audit."],
)


def test_a_card_says_where_a_model_comes_from_and_what_was_measured() -> None:
    text = model_card(CARD)
    assert text.startswith('---\nbase_model: "smollm2-135m"\nlibrary_name: "transformers"')
    assert 'license: "apache-2.0"' in text
    assert "| warm start | 200 | 41.0 % [34.4, 47.9] |" in text
    assert "| train: train.jsonl | `cd34` |" in text
    assert "| spec (in `spec/`) | `5bec` |" in text
    assert "trainer.adapter.rank = 16" in text
    assert "Noted beside these weights: loss 0.25." in text
    assert "- The grader did not pass its audit." in text
    assert "| transformers | 38 | 1e-05 | 0.005 | the same | 100% |" in text


def test_a_card_shows_no_secret_of_a_grader() -> None:
    text = model_card(CARD)
    assert "hush" not in text
    assert '"url": "https://example.org/grade?(hidden)"' in text
    assert '"headers": "(hidden)"' in text


def test_an_address_inside_a_text_is_no_less_secret() -> None:
    source = (
        "ask('https://me:hu@sh@example.org/a?key=hush#hush', 'http://[odd', 'https://b.org?x=1@2')"
    )
    text = model_card(replace(CARD, grader={"type": "python", "source": source}))
    assert "hush" not in text
    assert "sh@" not in text
    assert "ask('https://example.org/a?(hidden)', 'http://[odd', 'https://b.org?(hidden)')" in text


def test_what_is_not_known_is_said_so() -> None:
    text = model_card(replace(CARD, stages=[], license="see the model's own folder", grader={}))
    assert "Not measured on held-out tasks" in text
    assert "license:" not in text
    assert "Grader: the environment's own `grade`." in text
    assert "Grader: none." in model_card(replace(CARD, grader=None))


def test_trainings_are_told_in_their_order_even_if_alike() -> None:
    text = model_card(replace(CARD, methods=[("supervised", {"steps": 5}), *CARD.methods]))
    assert "after supervised training and then supervised training" in text
    assert text.index("steps = 5\n") < text.index("steps = 50\n")
