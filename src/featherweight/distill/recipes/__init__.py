"""Recipes: which losses, with which weights, temperature and layers, as they were published. One file each; the next
one goes beside them, subclasses `Recipe` and is imported here, and so has its word: `--recipe tinybert`.

    KD           (1-α) label + α T² KL(p ‖ q)                              Hinton, Vinyals and Dean 2015
    DistilBERT   5 T² KL(p ‖ q) + 2 label + 1 cosine of last states, T = 2 Sanh et al. 2019; DistilGPT2 over CausalLM
    TinyBERT     stage "layers": embeddings, hidden states and attention scores of mapped layers;
                 stage "prediction": -Σ p log q                            Jiao et al. 2019
    MiniLM       last layer: attention maps and value relations (version 1, Wang et al. 2020);
                 relations of queries, keys and values (version 2, Wang et al. 2021)
    GKD          generalized JSD, on text that the student writes itself   Agarwal et al. 2023
    SequenceKD   cross-entropy on text that the teacher writes             Kim and Rush 2016
"""

from featherweight.distill.recipes.distilbert import DistilBERT
from featherweight.distill.recipes.distilgpt2 import DistilGPT2
from featherweight.distill.recipes.gkd import GKD
from featherweight.distill.recipes.kd import KD
from featherweight.distill.recipes.minilm import MiniLM
from featherweight.distill.recipes.recipe import Recipe, Term, View
from featherweight.distill.recipes.sequence import SequenceKD
from featherweight.distill.recipes.tinybert import TinyBERT

__all__ = ["GKD", "KD", "DistilBERT", "DistilGPT2", "MiniLM", "Recipe", "SequenceKD", "Term", "TinyBERT", "View"]
