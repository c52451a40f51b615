"""The step of `vae1(64, 2)` with analytic σ² in JAX: an epoch of shuffled batches in one compiled `lax.scan`.

That is the floor of what a compiler makes of it: nothing of Python is left between the steps. Adam is written out.
"""

import time
from functools import cache

import jax
import jax.numpy as jnp
from serve import serve

DATA_DIM, HIDDEN, LATENT_DIM = 64, 50, 2
LEARNING_RATE, MOMENTUM = 5e-3, 0.9
DECAYS, EPSILON = (0.9, 0.999), 1e-8
# Both heads of the encoder are one layer, which is the faster way to write it.
WIDTHS = ((DATA_DIM, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2 * LATENT_DIM))
WIDTHS += ((LATENT_DIM, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, DATA_DIM))


def initial(key):
    """Weights and biases of each layer."""
    keys = jax.random.split(key, len(WIDTHS))
    return [
        (jax.random.normal(k, shape) / jnp.sqrt(shape[0]), jnp.zeros(shape[1]))
        for k, shape in zip(keys, WIDTHS, strict=True)
    ]


def _layers(x, layers):
    *hidden, (weight, bias) = layers
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b)
    return x @ weight + bias


def loss(parameters, x, noise, variance):
    """Negative ELBO per point under the running mean of the optimal σ², and that mean."""
    mean, log_variance = jnp.split(_layers(x, parameters[:3]), 2, axis=-1)
    z = mean + jnp.exp(0.5 * log_variance) * noise
    squared_error = jnp.mean(jnp.square(x - _layers(z, parameters[3:])))
    kl = 0.5 * jnp.mean(jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance, axis=-1))
    variance = jax.lax.stop_gradient(MOMENTUM * variance + (1 - MOMENTUM) * squared_error)
    return kl + 0.5 * DATA_DIM * (jnp.log(2 * jnp.pi * variance) + squared_error / variance), variance


def _adam(parameters, gradient, first, second, step):
    a, b = DECAYS
    first = jax.tree.map(lambda m, g: a * m + (1 - a) * g, first, gradient)
    second = jax.tree.map(lambda v, g: b * v + (1 - b) * g * g, second, gradient)

    def moved(p, m, v):
        return p - LEARNING_RATE * (m / (1 - a**step)) / (jnp.sqrt(v / (1 - b**step)) + EPSILON)

    return jax.tree.map(moved, parameters, first, second), first, second


@cache
def prepared(batch_size, steps):
    """A compiled epoch, its data, and the state that it starts from."""
    x = jax.random.uniform(jax.random.key(0), (batch_size * steps, DATA_DIM))

    def step(state, rows_and_key):
        rows, key = rows_and_key
        parameters, first, second, variance, count = state
        noise = jax.random.normal(key, (batch_size, LATENT_DIM))
        (value, variance), gradient = jax.value_and_grad(loss, has_aux=True)(parameters, x[rows], noise, variance)
        parameters, first, second = _adam(parameters, gradient, first, second, count + 1)
        return (parameters, first, second, variance, count + 1), value

    @jax.jit
    def epoch(state, key):
        order, noise = jax.random.split(key)
        rows = jax.random.permutation(order, len(x)).reshape(steps, batch_size)
        return jax.lax.scan(step, state, (rows, jax.random.split(noise, steps)))

    parameters = initial(jax.random.key(1))
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = (parameters, zeros, zeros, jnp.ones(()), jnp.zeros(()))
    # Compiled here, not within a measurement.
    jax.block_until_ready(epoch(state, jax.random.key(2)))
    return epoch, state


def measure(batch_size, steps):
    """Seconds per step of an epoch."""
    epoch, state = prepared(batch_size, steps)
    start = time.perf_counter()
    _, losses = jax.block_until_ready(epoch(state, jax.random.key(2)))
    seconds = time.perf_counter() - start
    assert losses[-1] < losses[0] or steps < 10, "the loss did not fall"
    return seconds / steps


if __name__ == "__main__":
    serve(measure, jax=jax.__version__)
