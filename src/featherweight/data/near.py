"""Near-duplicates: texts that share most of their words, whatever their case, punctuation and order.

similarity = 2 |a ∩ b| / (|a| + |b|) over the multisets of words (Sørensen-Dice), so that one changed word of n costs
1/n. The search is exact: by prefix filtering (Bayardo et al. 2007, Xiao et al. 2008), two texts can only be that
similar if they share one of their rarest words, and those alone are indexed.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import ceil

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
SLACK = 1e-9  # 0.8 · 5 must not become 4.000000001 words

Word = tuple[str, int]  # a word and its how-manieth occurrence: multisets as sets
Pair = tuple[int, int, float]


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; of scripts without spaces every character is one."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("’", ""))


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> list[Pair]:
    """(i, j, similarity) with i < j, sorted. Texts of the same words are each paired with the first of them only,
    and that first one stands for them all against the others."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: expected more than 0 and at most 1")
    groups = alike(texts)
    same = [(members[0], j, 1.0) for members in groups for j in members[1:]]
    return sorted(same + list(between(texts, [g[0] for g in groups], threshold)))


def alike(texts: Sequence[str]) -> list[list[int]]:
    """Texts of equal words (texts without any: of equal characters), in groups."""
    groups: dict[object, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        groups[tuple(sorted(words(text))) or text].append(i)
    return list(groups.values())


def between(texts: Sequence[str], chosen: Sequence[int], threshold: float) -> Iterator[Pair]:
    """Pairs among the chosen texts; shorter texts are indexed by their rare words before longer ones ask."""
    bags = ranked([numbered(words(texts[i])) for i in chosen])
    index: dict[int, list[int]] = defaultdict(list)
    sets = [frozenset(bag) for bag in bags]
    for a in sorted(range(len(bags)), key=lambda i: (len(bags[i]), i)):
        size = len(bags[a])
        least = ceil(size * threshold / (2 - threshold) - SLACK)  # words of the shortest partner
        shared = ceil(threshold / 2 * (size + least) - SLACK)
        found = {b for word in bags[a][: size - shared + 1] for b in index[word]}
        for b in found:
            total = size + len(bags[b])
            if len(bags[b]) >= least and 2 * (both := len(sets[a] & sets[b])) >= threshold * total - SLACK:
                i, j = sorted((chosen[a], chosen[b]))
                yield i, j, 2 * both / total
        for word in bags[a][: size - ceil(threshold * size - SLACK) + 1]:
            index[word].append(a)


def numbered(found: list[str]) -> list[Word]:
    seen: Counter[str] = Counter()
    out = []
    for word in found:
        seen[word] += 1
        out.append((word, seen[word]))
    return out


def ranked(bags: list[list[Word]]) -> list[list[int]]:
    """Words as their rank by frequency, rarest first in every bag."""
    counts = Counter(word for bag in bags for word in bag)
    rank = {word: i for i, word in enumerate(sorted(counts, key=lambda w: (counts[w], w)))}
    return [sorted(rank[word] for word in bag) for bag in bags]
