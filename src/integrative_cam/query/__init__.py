"""One photograph, one network, one question: what the network predicts, what is explained, and the record of it.

`icam explain`, the web page, the reports and the batch runner all ask here.

    prediction = predict("photo.jpg", load())
    question = Question("tabby", versus="tiger cat")
    (answer,) = answer_question(question, prediction, get_method("integrative"))
    answer.explanation.map
"""

from ._answer import RECORD, Answer, answer_question, area_above_half, read_record, score_parts, short_name
from ._prediction import Prediction, RankedClass, Ranking, example_photograph, predict, probabilities, rank_outputs
from ._target import Question, ResolvedTarget, parse_target, resolve_targets

__all__ = [
    "RECORD",
    "Answer",
    "Prediction",
    "Question",
    "RankedClass",
    "Ranking",
    "ResolvedTarget",
    "answer_question",
    "area_above_half",
    "example_photograph",
    "parse_target",
    "predict",
    "probabilities",
    "rank_outputs",
    "read_record",
    "resolve_targets",
    "score_parts",
    "short_name",
]
