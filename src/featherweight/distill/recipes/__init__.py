"""Recipes: which losses, with which weights, temperature and layers, as they were published. One file each; the next
one goes beside them, subclasses `Recipe` and is imported here, and so has its word: `--recipe tinybert`.

    KD           (1-α) label + α T² KL(p ‖ q)                              Hinton, Vinyals and Dean 2015
    DistilBERT   5 T² KL(p ‖ q) + 2 label + 1 cosine of last states, T = 2 Sanh et al. 2019
    TinyBERT     stage "layers": embeddings, hidden states and attention scores of mapped layers;
                 stage "prediction": -Σ p log q                            Jiao et al. 2019
    MiniLM       last layer: attention maps and value relations (version 1, Wang et al. 2020);
                 relations of queries, keys and values (version 2, Wang et al. 2021)
"""

from featherweight.distill.recipes.distilbert import DistilBERT
from featherweight.distill.recipes.kd import KD
from featherweight.distill.recipes.minilm import MiniLM
from featherweight.distill.recipes.recipe import Recipe, Term, View
from featherweight.distill.recipes.tinybert import TinyBERT

__all__ = ["KD", "DistilBERT", "MiniLM", "Recipe", "Term", "TinyBERT", "View"]
