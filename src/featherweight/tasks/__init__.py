"""What a batch means: encoding, loss, predictions and scores of each kind of task."""

from featherweight.tasks.causal import CausalLM
from featherweight.tasks.choices import Choices
from featherweight.tasks.classification import Classification
from featherweight.tasks.embedding import Embedding
from featherweight.tasks.masked_choices import MaskedChoices
from featherweight.tasks.masked_lm import MaskedLM
from featherweight.tasks.multilabel import MultiLabel
from featherweight.tasks.multiple_choice import MultipleChoice
from featherweight.tasks.pick import task_for
from featherweight.tasks.probing import CausalProbing, Probing
from featherweight.tasks.question_answering import QuestionAnswering
from featherweight.tasks.reasoning import ChainOfThought, Seq2SeqChainOfThought
from featherweight.tasks.regression import Regression
from featherweight.tasks.seq2seq import Seq2Seq
from featherweight.tasks.seq2seq_choices import Seq2SeqChoices
from featherweight.tasks.span_corruption import SpanCorruption
from featherweight.tasks.task import Task
from featherweight.tasks.token_classification import TokenClassification

__all__ = [
    "CausalLM", "CausalProbing", "ChainOfThought", "Choices", "Classification", "Embedding", "MaskedChoices",
    "MaskedLM", "MultiLabel", "MultipleChoice", "Probing", "QuestionAnswering", "Regression", "Seq2Seq",
    "Seq2SeqChainOfThought", "Seq2SeqChoices", "SpanCorruption", "Task", "TokenClassification", "task_for",
]  # fmt: skip
