"""Paper 54, "MoH": every token picks its heads; attention as a mixture of experts.

    python -m experiments.claims --only=54 --data_dir=DIR --out=runs/claims          5 minutes, DIR/books, DIR/mnist
    python -m experiments.claims --only=54                                           costs alone
    python -m experiments.claims --only=54 --size=tiny                               a minute: that everything runs

Claims: with 6 of 8 heads a token, MoH predicts text and tells digits as well as all 8 do, with 4 of 8 better than
softmax attention that has but 4; without the balance loss a few heads take all tokens; a trained softmax decoder that
goes on as MoH is worse at once and recovers in a short tuning; classes of bytes take different heads. As published it
saves no time: all heads are computed, then weighed.

Choices: decoders of two layers of width 64 with eight heads, two of them shared; all heads of all rivals have 8
channels. The balance loss weighs .01 of its mean over the layers. The tuning has a fifth of the training's step size.
"""

from experiments.papers.contract import ClaimContext, Line
from experiments.papers.mixture_of_heads import conversion, costs, digits, gates, text
from experiments.papers.mixture_of_heads.settings import MOH_75, SIZES


def run(context: ClaimContext) -> list[Line]:
    """Every line of the size, and its pictures."""
    size = SIZES[context.size]
    if context.lacks('books'):
        lines = text.missing()
    else:
        context.say('novels')
        lines = _text(context)
    if context.lacks('mnist'):
        lines += digits.missing()
    else:
        context.say('digits')
        lines += digits.lines(digits.measure(context, size), size)
    context.say('costs')
    return lines + costs.lines(costs.table(context, size), size)


def _text(context: ClaimContext) -> list[Line]:
    size = SIZES[context.size]
    found = text.measure(context, size)
    lines = text.lines(found, size)
    lines += conversion.lines(conversion.measure(context, size, found), found, size)
    setting = text.settings(context, size)[MOH_75]
    read = gates.read(setting, found[MOH_75][0]['variables'])
    gates.draw(read, setting.model.mixer[0], context.out / 'mixture_of_heads.png')
    return lines + gates.lines(read, setting.model.mixer[0], context.seed)
