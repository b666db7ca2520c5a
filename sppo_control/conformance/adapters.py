"""Adapters: find them, call them with arrays of their framework, and read what they return as NumPy arrays."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from .cases import Array, Case, RandomSource
from .spec import FUNCTIONS, Function, Property

FRAMEWORKS = ("torch", "numpy", "jax")
Answer = dict[str, Any]
"""Arrays by output or `gradient of NAME`; or one text under `error`."""


class NotOffered(Exception):
    """The adapter does not offer what a property is about."""


def load(place: str) -> Any:
    """The adapter that `module:name` names, or `module` alone, which is an adapter itself.

    Raises:
        UserError: there is no such module or name, it is a file's name, or its import fails.
    """
    module, _, name = place.partition(":")
    if module.endswith(".py"):
        folder, _, stem = module.removesuffix(".py").replace(os.sep, "/").rpartition("/")
        where = f", in the folder {folder}" if folder else ""
        raise UserError(f"an adapter is a module, not a file, got {place!r}; write {stem}, without .py{where}")
    if not module or not all(part.isidentifier() for part in [*module.split("."), *name.split(".")] if part or name):
        raise UserError(f"an adapter is module:name, such as my_losses:adapter, got {place!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise UserError(f"the adapter's module {module!r} cannot be imported: {_short(error)}") from error
    for part in name.split(".") if name else ():
        if not hasattr(found, part):
            raise UserError(f"module {module!r} has no {name!r}; its names: {', '.join(_public(found)) or 'none'}")
        found = getattr(found, part)
    return found


def _public(thing: Any) -> list[str]:
    return [name for name in vars(thing) if not name.startswith("_")][:20]


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


class Adapter:
    """One door to a module, a class, an object or a dictionary.

    Attributes:
        functions: what it offers, by the name in the specification.
        framework: "torch", "numpy" or "jax": as it says in its own attribute `framework`, or found by a trial.
        dtype: "float64" or "float32".
        expected_failures: its own attribute of this name, or nothing.
    """

    def __init__(self, thing: Any) -> None:
        """Raises ValueError if it offers nothing, or an unknown framework or dtype."""
        if inspect.isclass(thing):
            with contextlib.suppress(TypeError):  # it wants arguments: its static methods are offered
                thing = thing()
        self.thing = thing
        self.functions: dict[str, Callable[..., Any]] = {}
        for function in FUNCTIONS:
            for name in (function.name, *function.also):
                if callable(found := self.attribute(name)):
                    self.functions[function.name] = found
                    break
        if callable(found := self.attribute("value_loss")):  # either of the two
            names = _parameters(found)[0]
            kind = "bernoulli_value_loss" if {"outcome", "value_logit"} & set(names) else "squared_value_loss"
            self.functions.setdefault(kind, found)
        if not self.functions:
            raise ValueError(
                f"the adapter offers nothing to check; it may offer: {', '.join(f.name for f in FUNCTIONS)}"
            )
        framework = self.attribute("framework")
        if framework is not None and framework not in FRAMEWORKS:
            raise ValueError(f"the adapter's framework must be one of {', '.join(FRAMEWORKS)}, got {framework!r}")
        if framework == "jax" and find_spec("jax") is None:
            raise ValueError("the adapter's framework is jax, which is not installed")
        self.framework: str = framework or self._guess()
        self.dtype: str = self.attribute("dtype") or ("float32" if self.framework == "jax" else "float64")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"the adapter's dtype must be float32 or float64, got {self.dtype!r}")
        self.expected_failures: dict[str, str] = dict(self.attribute("expected_failures") or {})

    def attribute(self, name: str) -> Any:
        """The adapter's attribute or entry, None if it has none."""
        return self.thing.get(name) if isinstance(self.thing, Mapping) else getattr(self.thing, name, None)

    def _guess(self) -> str:
        """The framework whose arrays the first function takes and returns."""
        function = next(f for f in FUNCTIONS if f.name in self.functions)
        from .spec import PROPERTIES

        prop = next(p for p in PROPERTIES if p.function is function)
        case = prop.make(RandomSource([0]))
        for framework in FRAMEWORKS:
            if framework == "jax" and "jax" not in sys.modules:
                continue
            self.framework, self.dtype = framework, "float64"
            try:
                # NumPy's functions take tensors too, but not those with a gradient
                floating = tuple(n for n, x in case.arrays.items() if np.issubdtype(x.dtype, np.floating))
                result = self._raw(function, case, framework, floating if framework == "torch" else ())[0]
            except Exception:  # the wrong arrays, or a defect: then it is found again below
                continue
            first = result
            while isinstance(first, tuple | list) and first:
                first = first[0]
            if isinstance(first, Mapping) and first:
                first = next(iter(first.values()))
            kind = type(getattr(first, "loss", first)).__module__.split(".")[0]
            return "torch" if kind == "torch" else "jax" if kind in ("jax", "jaxlib") else "numpy"
        return "torch"

    def array(self, x: Array, dtype: str, framework: str | None = None) -> Any:
        """A NumPy array as one of the adapter's framework; floating ones in this dtype."""
        framework = framework or self.framework
        if np.issubdtype(x.dtype, np.floating):
            x = x.astype(dtype)
        if framework == "torch":
            return torch.from_numpy(x.copy())
        if framework == "jax":
            import jax.numpy as jnp

            return jnp.asarray(x)
        return x.copy()

    def _raw(
        self, function: Function, case: Case, framework: str, gradients: tuple[str, ...]
    ) -> tuple[Any, dict[str, Any]]:
        dtype = case.dtype or self.dtype
        arrays = {name: self.array(x, dtype, framework) for name, x in case.arrays.items()}
        for name in gradients:
            arrays[name].requires_grad_()
        return self._call(function, arrays, case.options), arrays

    def _call(self, function: Function, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        call = self.functions[function.name]
        first = [arrays[name] for name in function.arrays]
        named = {name: arrays[name] for name in function.optional_arrays if name in arrays} | dict(options)
        names, any_name = _parameters(call)
        missing = [name for name in named if name not in names and not any_name]
        if missing:
            raise NotOffered(f"{function.name} has no argument {missing[0]}")
        # Without this, an option without a default would be a TypeError in all properties that do not set it, and an
        # adapter with a default of its own, such as gamma = 0.99, would fail for it.
        own = _own_defaults(call, len(first))
        return call(
            *first, **{name: x for name, x in function.defaults.items() if name in own and own[name] != x} | named
        )

    def unknown(self, function: Function) -> dict[str, Any]:
        """Arguments of the adapter's function that the specification does not know, and the defaults that they keep."""
        own = _own_defaults(self.functions[function.name], len(function.arrays))
        known = {*function.arrays, *function.optional_arrays, *function.defaults, "group_size", "successes", "trials"}
        return {name: x for name, x in own.items() if name not in known and x is not inspect.Parameter.empty}

    def answer(self, prop: Property, case: Case) -> Answer:
        """What the adapter says in this case: outputs and gradients as float64 arrays, or `error`.

        Raises:
            NotOffered: it has no such argument or output, or raises NotImplementedError.
        """
        try:
            if prop.function.name == "update":
                return self._update(case, prop.needs)
            return self._jax(prop, case) if self.framework == "jax" else self._plain(prop, case)
        except NotOffered:
            raise
        except NotImplementedError as error:
            raise NotOffered(str(error) or "the adapter says NotImplementedError") from None
        except Exception as error:
            return {"error": f"raises {_short(error)}"}

    def _plain(self, prop: Property, case: Case) -> Answer:
        gradients = prop.gradients if self.framework == "torch" else ()
        if prop.gradients and not gradients and all(key.startswith("gradient of") for key in prop.keys):
            raise NotOffered(f"{self.framework} has no gradients")
        if case.dtype == "float16" and self.framework != "torch":
            raise NotOffered("float16 is checked for torch only")
        result, arrays = self._raw(prop.function, case, self.framework, gradients)
        outputs = _outputs(prop.function, result, [k for k in prop.keys if not k.startswith("gradient of")])
        answer: Answer = {name: _numpy(x) for name, x in outputs.items()}
        if gradients:
            leaves = [arrays[name] for name in gradients]
            answer |= torch_gradients(outputs[prop.function.outputs[0]], gradients, leaves)
        return answer

    def _jax(self, prop: Property, case: Case) -> Answer:
        import jax

        if case.dtype == "float16":
            raise NotOffered("float16 is checked for torch only")
        arrays = {name: self.array(x, self.dtype) for name, x in case.arrays.items()}
        wanted = [k for k in prop.keys if not k.startswith("gradient of")]

        def call(*leaves: Any) -> dict[str, Any]:
            with_leaves = {**arrays, **dict(zip(prop.gradients, leaves, strict=True))}
            return _outputs(prop.function, self._call(prop.function, with_leaves, case.options), wanted)

        leaves = [arrays[name] for name in prop.gradients]
        if not leaves:
            return {name: _numpy(x) for name, x in call().items()}
        first = prop.function.outputs[0]
        outputs = {name: _numpy(x) for name, x in call(*leaves).items()}
        y, pull = jax.vjp(lambda *leaves: call(*leaves)[first], *leaves)
        weights = jax.numpy.arange(1.0, y.size + 1, dtype=y.dtype).reshape(y.shape)
        found = pull(weights)
        return outputs | {f"gradient of {n}": _numpy(g) for n, g in zip(prop.gradients, found, strict=True)}

    def _update(self, case: Case, needs: tuple[str, ...]) -> Answer:
        options = case.options
        make, save, load = (self.attribute(name) for name in ("init", "save", "load"))
        read = self.attribute("params") or (lambda state: state)
        if needs and self.attribute("optimizer") in (None, "sgd") and save is None:
            raise NotOffered("plain gradient descent without save and load has nothing to resume")
        dtype = self.dtype
        arrays = {name: self.array(x, dtype) for name, x in case.arrays.items()}

        def start() -> Any:
            weights = {name: self.array(case.arrays[name], dtype) for name in ("policy", "critic")}
            return make(weights) if make else weights

        numbers = {name: options[name] for name in ("learning_rate", "clip_coef", "micro_batch_size")}
        batch = {name: x for name, x in arrays.items() if name not in ("policy", "critic")} | numbers
        state, step = start(), self.functions["update"]
        for number in range(options["updates"]):
            if number and options["resume"]:
                saved = save(state) if save else copy.deepcopy(state)
                step(start(), dict(batch))  # whatever is kept outside the state is somebody else's now
                state = load(saved) if load else saved
            state = step(state, dict(batch))
        weights = read(state)
        if not isinstance(weights, Mapping) or not {"policy", "critic"} <= set(weights):
            raise TypeError(f"update must return the weights policy and critic, got {type(weights).__name__}")
        return {name: _numpy(weights[name]) for name in ("policy", "critic")}


def torch_gradients(y: Any, names: tuple[str, ...], leaves: list[torch.Tensor]) -> Answer:
    """Gradients of sum(k y_k) with respect to the leaves, k = 1, 2, ...; 0 where there is none."""
    zeros = [torch.zeros_like(x) for x in leaves]
    found: list[Any] = list(zeros)
    if isinstance(y, torch.Tensor) and y.requires_grad:
        weights = torch.arange(1, y.numel() + 1, dtype=y.dtype).reshape(y.shape)
        got = torch.autograd.grad((weights * y).sum(), leaves, allow_unused=True)
        found = [zero if g is None else g for g, zero in zip(got, zeros, strict=True)]
    return {f"gradient of {name}": _numpy(g) for name, g in zip(names, found, strict=True)}


def _parameters(call: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names of a function's parameters, and whether it takes any other name."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return [], True
    return [p.name for p in parameters], any(p.kind is p.VAR_KEYWORD for p in parameters)


def _own_defaults(call: Callable[..., Any], first: int) -> dict[str, Any]:
    """The parameters behind the `first` ones, which are passed by position, and their defaults; `empty` is none."""
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return {}
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    behind = [p for p in by_position[first:] if p.kind is p.POSITIONAL_OR_KEYWORD]
    return {p.name: p.default for p in [*behind, *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]}


def _outputs(function: Function, result: Any, wanted: list[str]) -> dict[str, Any]:
    """The outputs by name, from an object, a dictionary, a tuple or one array."""
    if isinstance(result, Mapping):
        found = {name: result[name] for name in function.outputs if name in result}
    elif function.loss and hasattr(result, "loss"):
        found = {name: getattr(result, name) for name in function.outputs if hasattr(result, name)}
    elif isinstance(result, tuple | list):
        found = dict(zip(function.outputs[:1] if function.loss else function.outputs, result, strict=False))
    else:
        found = {function.outputs[0]: result}
    for name in [*wanted, function.outputs[0]]:
        if name not in found:
            if name == function.outputs[0]:
                raise TypeError(f"no {name} in what it returns, which is {type(result).__name__}")
            raise NotOffered(f"{function.name} does not return {name}")
    return found


def _numpy(x: Any) -> Array:
    if isinstance(x, torch.Tensor):
        return x.detach().cpu().double().numpy()
    array = np.asarray(x)
    if array.dtype == object:
        raise TypeError(f"an array was expected, got {type(x).__name__}")
    return array.astype(np.float64)
