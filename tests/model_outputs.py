"""What a model computes, compiled as a whole: op by op takes far longer, each time anew.

Results are arrays of NumPy, so that nothing is compiled to look at them either. Tests of one
process share these programs, as far as their models are of one form.
"""

import functools

import jax
import numpy as np
from flax import nnx

from emodistill.train.trainer import response_logprobs


def logits(model, tokens_BT, **arguments):
    """Logits [B, T, V]; `arguments` are those of the model's call."""
    graphdef, state = nnx.split(model)
    return np.asarray(_logits(graphdef, state, np.asarray(tokens_BT, np.int32), arguments))


def reply_logprobs(model, batch):
    """Log-probs [S, U] of a batch's replies."""
    graphdef, state = nnx.split(model)
    return np.asarray(_reply_logprobs(graphdef, state, batch))


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, state, tokens_BT, arguments):
    return nnx.merge(graphdef, state)(tokens_BT, **arguments)


@functools.partial(jax.jit, static_argnums=0)
def _reply_logprobs(graphdef, state, batch):
    return response_logprobs(nnx.merge(graphdef, state), batch)
