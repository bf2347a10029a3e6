"""PyTorch's side of the comparison: the same work on the same sizes, timed with CUDA events.

peer.py OURS.json [SECONDS] adds the rows "peers" to the file that gpu_benchmark wrote, one by one, and prints one table of both.
What torch.compile makes comes last, because it takes the most time. What has not ended after SECONDS (default: all the time
it takes), or when the process is told to end, is left out and said.
"""

import json
import os
import signal
import statistics
import sys
import time

import torch
from torch.nn.utils import prune as torch_prune

ROUNDS = 20
CALLS = 5  # one after the other, so that the host is ahead of the device
WARM_SECONDS = 0.2  # a device that has waited for the host runs slowly at first


def reason(problem):
    """Its name and what it says first; of the compiler's that is who says it, and then what."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {' '.join(lines[:2])}"


class TimeIsUp(BaseException):
    """Raised by a signal in whatever runs. No Exception: the compiler goes on after some of those."""


class Clock:
    """When the time is up, or the process is told to end, what runs is broken off and nothing more begins."""

    def __init__(self, seconds):
        self.is_up = seconds <= 0
        self.running = False
        for number in (signal.SIGALRM, signal.SIGTERM):
            signal.signal(number, self.ring)
        if 0 < seconds < float("inf"):
            # And again, where the first was lost in code that lets nothing through.
            signal.setitimer(signal.ITIMER_REAL, seconds, 5)

    def ring(self, *_):
        self.is_up = True
        if self.running:
            raise TimeIsUp


class Rows:
    """What is measured of one of our rows: what torch.compile makes, or else all but that."""

    def __init__(self, name, size, compiles, clock, keep):
        self.name = name
        self.size = size
        self.compiles = compiles
        self.clock = clock
        self.keep = keep

    def attempt(self, peer, work, before=None, graph=False):
        """Times one way of doing it, or a CUDA graph of it; what this machine cannot run is said and left out."""
        if not self.compiles:
            self.time(peer, lambda: milliseconds(in_graph(work) if graph else work, before))

    def attempt_compiled(self, peer, function, run, graph=False):
        """run(compiled function). Compiled anew for each size: Dynamo caches by code, and would take a second
        size for a dynamic one, or give up after eight. What the compiler's best mode fails at, its default may do."""

        def measure(mode):
            torch._dynamo.reset()
            compiled = torch.compile(function, mode=mode, dynamic=False)

            def work():
                run(compiled)

            try:
                return milliseconds(in_graph(work) if graph else work)
            finally:
                torch._dynamo.reset()  # what is compiled holds on to its tensors

        if self.compiles and not self.time(peer, lambda: measure("max-autotune-no-cudagraphs")):
            self.time(f"{peer}, default mode", lambda: measure("default"))

    def time(self, peer, measure):
        """Whether measure() gave milliseconds."""
        took = None
        why = "the time is up"
        try:
            self.clock.running = True
            if not self.clock.is_up:
                took = measure()
            self.clock.running = False
        except TimeIsUp:
            pass
        except Exception as problem:
            why = reason(problem)
        self.clock.running = False
        if took is None:
            print(f"{self.name}, {self.size}, {peer}: left out: {why}", file=sys.stderr)
            return False
        print(f"{self.name}, {self.size}, {peer}: {took:.4f} ms", file=sys.stderr)
        self.keep(
            {"name": self.name, "size": self.size, "peer": peer, "milliseconds": took, "wanted": wanted(self.name, peer)}
        )
        return True


def milliseconds(work, before=None):
    calls = 1 if before else CALLS
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    times = []
    done = 0
    warm, rounds = 3, ROUNDS
    began = None
    while len(times) < rounds:
        if before:
            before()
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        done += 1
        took = start.elapsed_time(end)
        if done == 2 and took > 200:
            warm, rounds = 2, 3
        began = began or time.monotonic()  # after the first, which compiles
        if done > warm and time.monotonic() - began > WARM_SECONDS:
            times.append(took / calls)
    return statistics.median(times)


def in_graph(work):
    """The work as a CUDA graph, without what the host does for it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def fake_quantize(rows, channels, inner):
    x = torch.randn(channels, inner, device="cuda") * 0.05
    zero = torch.zeros(channels, device="cuda")  # integers would be checked on the host each time

    def eager():
        scale = x.abs().amax(1) / 127
        return torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -127, 127)

    def plain(values):
        scale = values.abs().amax(1, keepdim=True) / 127
        return torch.clamp(torch.round(values * (1 / scale)), -127, 127) * scale

    on = torch.ones(1, dtype=torch.long, device="cuda")
    low = torch.zeros(channels, device="cuda")
    high = torch.zeros(channels, device="cuda")
    scale = torch.ones(channels, device="cuda")
    integer_zero = torch.zeros(channels, dtype=torch.int32, device="cuda")

    def observer():
        return torch.fused_moving_avg_obs_fake_quant(
            x, on, on, low, high, scale, integer_zero, 1.0, -127, 127, 0, True, True
        )

    rows.attempt("eager", eager)
    rows.attempt("fused_moving_avg_obs_fake_quant", observer)
    rows.attempt_compiled("compile", plain, lambda fused: fused(x))


def fused_step(rows, count, height, width, kind, adamw, graph):
    """kind: plain, compressed or guarded, as in gpu_benchmark; graph: each call as a CUDA graph."""
    shape = (height, width)
    plain, guarded = kind == "plain", kind == "guarded"

    def made(value):
        return [value() for _ in range(count)]

    weights = made(lambda: torch.randn(shape, device="cuda") * 0.05)
    gradients = made(lambda: torch.randn(shape, device="cuda") * 0.01)
    if plain:
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient
        for fused in (True, False):
            name = "fused" if fused else "foreach"
            options = {"fused": True} if fused else {"foreach": True}
            if adamw:
                optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01, **options)
            else:
                optimizer = torch.optim.SGD(
                    weights, lr=0.01, momentum=0.9, weight_decay=1e-4, **options
                )
            rows.attempt(f"{type(optimizer).__name__}({name}=True)", optimizer.step)
            del optimizer
            torch.cuda.empty_cache()
        return
    first = made(lambda: torch.zeros(shape, device="cuda"))
    second = made(lambda: torch.zeros(shape, device="cuda")) if adamw else []
    steps = made(lambda: torch.ones((), device="cuda")) if adamw else []
    masks = made(lambda: (torch.rand(shape, device="cuda") > 0.5).float())
    copies = made(lambda: torch.empty(shape, device="cuda"))
    zero = torch.zeros(height, device="cuda")  # integers would be checked on the host each time

    def masked_gradients():  # the gradients stay as they are, so that every call does the same work
        result = torch._foreach_mul(gradients, masks)
        if guarded:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(result)))
            torch._foreach_mul_(result, torch.clamp(1.0 / (norm + 1e-6), max=1.0))
        return result

    def eager():
        masked = masked_gradients()
        if adamw:
            torch._fused_adamw_(
                weights, masked, first, second, [], steps, lr=1e-3, beta1=0.9, beta2=0.999,
                weight_decay=0.01, eps=1e-8, amsgrad=False, maximize=False,
            )
        else:
            torch._fused_sgd_(
                weights, masked, first, weight_decay=1e-4, momentum=0.9, lr=0.01, dampening=0.0,
                nesterov=False, maximize=False, is_first_step=False,
            )
        torch._foreach_mul_(weights, masks)
        for weight, copy in zip(weights, copies):
            scale = weight.abs().amax(1) / 127
            copy.copy_(torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127))

    def quantized(weight, copy):
        scale = weight.abs().amax(1, keepdim=True) / 127
        copy.copy_(torch.clamp(torch.round(weight * (1 / scale)), -127, 127) * scale)

    def one_sgd(weight, gradient, buffer, mask, copy, factor):
        d = gradient * mask * factor + 1e-4 * weight
        buffer.mul_(0.9).add_(d).mul_(mask)
        weight.sub_(0.01 * buffer).mul_(mask)
        quantized(weight, copy)

    def one_adamw(weight, gradient, m, v, mask, copy, factor):
        d = gradient * mask * factor
        m.mul_(0.9).add_(0.1 * d).mul_(mask)
        v.mul_(0.999).add_(0.001 * d * d).mul_(mask)
        weight.mul_(1 - 1e-5).sub_(1e-3 * m / (v.sqrt() + 1e-8)).mul_(mask)
        quantized(weight, copy)

    one = one_adamw if adamw else one_sgd
    state = (first, second) if adamw else (first,)

    def clip_factor():
        if not guarded:
            return torch.ones((), device="cuda")
        masked = torch._foreach_mul(gradients, masks)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(masked)))
        return torch.clamp(1.0 / (norm + 1e-6), max=1.0)

    def all_at_once():
        factor = clip_factor()
        for arguments in zip(weights, gradients, *state, masks, copies):
            one(*arguments, factor)

    def tensor_by_tensor(fused):
        factor = clip_factor()
        for arguments in zip(weights, gradients, *state, masks, copies):
            fused(*arguments, factor)

    name = "eager with _fused_" + ("adamw_" if adamw else "sgd_")
    rows.attempt(name, eager, graph=graph)
    rows.attempt_compiled("compile, a tensor a call", one, tensor_by_tensor, graph)
    rows.attempt_compiled("compile, one call", all_at_once, lambda fused: fused(), graph)


def prune(rows, n, tensors, dtype):
    source = torch.randn(n, device="cuda", dtype=dtype).mul_(0.05)
    weights = source.clone()
    k = n // 2

    def restore():
        weights.copy_(source)

    def kth_value():
        cut = torch.kthvalue(weights.abs(), k).values
        weights.mul_(weights.abs() > cut)

    rows.attempt("kthvalue", kth_value, restore)
    if dtype != torch.float32:
        return  # 7 G weights: neither the indices nor the joined list find room beside them
    modules = []
    for part in weights.split(-(-n // tensors)):
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(part)
        modules.append(module)

    def unpruned():
        for module in modules:
            if torch_prune.is_pruned(module):
                torch_prune.remove(module, "weight")
        restore()

    def global_unstructured():
        torch_prune.global_unstructured(
            [(module, "weight") for module in modules],
            pruning_method=torch_prune.L1Unstructured,
            amount=0.5,
        )

    rows.attempt("global_unstructured", global_unstructured, unpruned)


def threshold(rows, n):
    weights = torch.randn(n, device="cuda").mul_(0.05)
    rows.attempt("eager", lambda: weights.mul_(weights.abs() >= 0.03))
    rows.attempt_compiled(
        "compile", lambda w: w.mul_(w.abs() >= 0.03), lambda fused: fused(weights)
    )


def distill(rows, n, classes):
    student = (torch.randn(n, classes, device="cuda") * 2).bfloat16().requires_grad_()
    teacher = (torch.randn(n, classes, device="cuda") * 2).bfloat16()
    labels = torch.randint(classes, (n,), device="cuda")

    def loss(s, t, y):
        soft = torch.nn.functional.kl_div(
            torch.log_softmax(s.float() / 2, 1), torch.softmax(t.float() / 2, 1), reduction="batchmean"
        )
        return 0.5 * torch.nn.functional.cross_entropy(s.float(), y) + 0.5 * 4 * soft

    def run(function):
        student.grad = None
        function(student, teacher, labels).backward()

    rows.attempt("eager", lambda: run(loss))
    rows.attempt_compiled("compile", loss, run)


def main(path, seconds):
    with open(path) as file:
        ours = json.load(file)
    if not torch.cuda.is_available():
        print("python3 has torch, but torch sees no GPU: no peers", file=sys.stderr)
        return 1
    clock = Clock(seconds)
    ours["peers"] = []
    ours["torch"] = torch.__version__

    def keep(peer):
        ours["peers"].append(peer)
        with open(path + ".part", "w") as file:
            json.dump(ours, file, indent=1)
        os.replace(path + ".part", path)

    # Of steps the compiler is given lists of up to 200 tensors: what it takes minutes for comes last.
    sizes = sorted(
        {(row["name"], row["size"]) for row in ours["rows"]},
        key=lambda row: (row[0].startswith("fused_"), "small" in row[0], row),
    )
    for compiles in (False, True):
        for name, size in sizes:
            if clock.is_up:
                what = "compiled" if compiles else "all"
                print(f"{name}, {size}, {what}: left out: the time is up", file=sys.stderr)
                continue
            try:
                measure(name, size, Rows(name, size, compiles, clock, keep))
            except Exception as problem:  # no room for its data, say
                print(f"{name}, {size}: left out: {reason(problem)}", file=sys.stderr)
            torch.cuda.empty_cache()
    table(ours)
    return 0


def measure(name, size, rows):
    numbers = [int(word) for word in size.replace(",", " ").split() if word.isdigit()]
    if name == "fake_quantize, rows observed":
        fake_quantize(rows, numbers[0], numbers[1])
    elif name.startswith("fused_") and "the call" not in name:
        count, all_weights = numbers
        height = 1 if "small" in name else 1024
        kind = name.split(", ")[1].split()[0]
        width = all_weights // count // height
        fused_step(rows, count, height, width, kind, "adamw" in name, "in a graph" in name)
    elif name == "magnitude_prune, threshold":
        threshold(rows, numbers[0])
    elif name.startswith("magnitude_prune"):
        prune(rows, numbers[0], numbers[1], torch.bfloat16 if "BF16" in size else torch.float32)
    elif name.startswith("kd_softmax_loss"):
        distill(rows, numbers[0], numbers[1])


def wanted(name, peer):
    """How many times as fast as a peer the operation is to be; 0 where nothing is asked of it."""
    if peer.startswith("compile"):
        return 1.2
    if peer == "global_unstructured":
        return 20
    return 3 if "compressed" in name and peer.startswith("eager") else 0


def verdict(met):
    return "met" if met else "MISSED"


def table(ours):
    print(f"\n{ours['device']}, torch {ours['torch']}")
    print(f"{'operation':46}{'size':30}{'ms':>10}{'of copy':>9}  target; peers")
    for row in ours["rows"]:
        beside = []
        if "target_of_copy" in row:
            beside.append(f">= {100 * row['target_of_copy']:.0f} % of copy: {verdict(row['met'])}")
        if "target_milliseconds" in row:
            beside.append(f"<= {row['target_milliseconds']:.4f} ms: {verdict(row['met'])}")
        for p in ours["peers"]:
            if p["name"] == row["name"] and p["size"] == row["size"]:
                factor = p["milliseconds"] / row["milliseconds"]
                text = f"{p['peer']} {p['milliseconds']:.3f} ms = {factor:.1f}x"
                if p["wanted"]:
                    text += f" (>= {p['wanted']}x: {verdict(factor >= p['wanted'])})"
                beside.append(text)
        share = f"{100 * row['of_copy']:8.1f}%" if row["bytes"] else " " * 9
        print(
            f"{row['name']:46}{row['size']:30}{row['milliseconds']:10.4f}{share}  "
            f"{'; '.join(beside)}"
        )
    for what in ours["left_out"]:
        print(f"left out: {what}")
    for what in ours["failed"]:
        print(f"FAILED: {what}")
    if not ours["complete"]:
        print("FAILED: gpu_benchmark was stopped: rows of ours are missing")


if __name__ == "__main__":
    code = main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else float("inf"))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the compiler's workers, which may have been broken off, are not waited for
