"""PyTorch's side of the comparison: the same work on the same sizes, timed with CUDA events.

peer.py OURS.json adds the rows "peers" to the file that gpu_benchmark wrote and prints one table of both.
"""

import json
import statistics
import sys

import torch

ROUNDS = 20


def milliseconds(work, before=None):
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    times = []
    for i in range(-5, ROUNDS):
        if before:
            before()
        start.record()
        work()
        end.record()
        end.synchronize()
        if i >= 0:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def compiled(function):
    try:
        return torch.compile(function, mode="max-autotune-no-cudagraphs")
    except Exception as problem:  # a machine without a compiler for Triton
        print(f"torch.compile is left out: {problem}", file=sys.stderr)
        return None


def attempt(rows, size, peer, work, before=None):
    """Times one way of doing it; what this machine cannot run is said and left out."""
    if not work:
        return
    try:
        rows.append({"size": size, "peer": peer, "milliseconds": milliseconds(work, before)})
    except Exception as problem:
        print(f"{size}, {peer}: left out: {type(problem).__name__}: {problem}", file=sys.stderr)


def fake_quantize(rows, size, channels, inner):
    x = torch.randn(channels, inner, device="cuda") * 0.05
    zero = torch.zeros(channels, dtype=torch.int32, device="cuda")

    def eager():
        scale = x.abs().amax(1) / 127
        return torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -127, 127)

    def plain(values):
        scale = values.abs().amax(1, keepdim=True) / 127
        return torch.clamp(torch.round(values * (1 / scale)), -127, 127) * scale

    fused = compiled(plain)
    attempt(rows, size, "eager", eager)
    attempt(rows, size, "compile", fused and (lambda: fused(x)))


def fused_step(rows, size, count, height, width, kind, adamw):
    """kind: plain, compressed or guarded, as in gpu_benchmark."""
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
            attempt(rows, size, f"{type(optimizer).__name__}({name}=True)", optimizer.step)
            del optimizer
            torch.cuda.empty_cache()
        return
    first = made(lambda: torch.zeros(shape, device="cuda"))
    second = made(lambda: torch.zeros(shape, device="cuda")) if adamw else []
    steps = made(lambda: torch.ones((), device="cuda")) if adamw else []
    masks = made(lambda: (torch.rand(shape, device="cuda") > 0.5).float())
    copies = made(lambda: torch.empty(shape, device="cuda"))
    zero = torch.zeros(height, dtype=torch.int32, device="cuda")

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

    fused = compiled(one_adamw if adamw else one_sgd)
    one = torch.ones((), device="cuda")

    def through_compiler():
        factor = one
        if guarded:
            masked = torch._foreach_mul(gradients, masks)
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(masked)))
            factor = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
        state = (first, second) if adamw else (first,)
        for arguments in zip(weights, gradients, *state, masks, copies):
            fused(*arguments, factor)

    attempt(rows, size, "eager with _fused_" + ("adamw_" if adamw else "sgd_"), eager)
    attempt(rows, size, "compile", fused and through_compiler)


def prune(rows, size, n, dtype, recipe):
    source = torch.randn(n, device="cuda", dtype=torch.float32).mul_(0.05).to(dtype)
    weights = source.clone()
    k = n // 2

    def restore():
        weights.copy_(source)

    def global_unstructured():  # what torch.nn.utils.prune does with a list: join, topk, mask, apply
        joined = torch.cat([weights])
        mask = torch.ones_like(joined)
        mask.view(-1)[torch.topk(joined.abs(), k=k, largest=False).indices] = 0
        weights.mul_(mask)

    def kth_value():
        cut = torch.kthvalue(weights.abs().float(), k).values
        weights.mul_(weights.abs() > cut)

    attempt(rows, size, "global_unstructured recipe", recipe and global_unstructured, restore)
    attempt(rows, size, "kthvalue", kth_value, restore)


def threshold(rows, size, n):
    weights = torch.randn(n, device="cuda").mul_(0.05)
    attempt(rows, size, "eager", lambda: weights.mul_(weights.abs() >= 0.03))
    fused = compiled(lambda w: w.mul_(w.abs() >= 0.03))
    attempt(rows, size, "compile", fused and (lambda: fused(weights)))


def distill(rows, size, n, classes):
    student = (torch.randn(n, classes, device="cuda") * 2).bfloat16().requires_grad_()
    teacher = (torch.randn(n, classes, device="cuda") * 2).bfloat16()
    labels = torch.randint(classes, (n,), device="cuda")

    def loss(s, t, y):
        soft = torch.nn.functional.kl_div(
            torch.log_softmax(s.float() / 2, 1), torch.softmax(t.float() / 2, 1), reduction="batchmean"
        )
        return 0.5 * torch.nn.functional.cross_entropy(s.float(), y) + 0.5 * 4 * soft

    fused = compiled(loss)

    def run(function):
        student.grad = None
        function(student, teacher, labels).backward()

    attempt(rows, size, "eager", lambda: run(loss))
    attempt(rows, size, "compile", fused and (lambda: run(fused)))


def main(path):
    with open(path) as file:
        ours = json.load(file)
    if not torch.cuda.is_available():
        print("python3 has torch, but torch sees no GPU: no peers", file=sys.stderr)
        return
    sizes = {(row["name"], row["size"]) for row in ours["rows"]}
    peers = []
    for name, size in sorted(sizes):
        rows = []
        first = [int(word) for word in size.replace(",", " ").split() if word.isdigit()]
        if name == "fake_quantize, rows observed":
            fake_quantize(rows, size, first[0], first[1])
        elif name.startswith("fused_") and "the call" not in name and "in a graph" not in name:
            count, all_weights = first[0], first[1]
            height = 1 if "small" in name else 1024
            kind = name.split(", ")[1].split()[0]
            fused_step(
                rows, size, count, height, all_weights // count // height, kind, "adamw" in name
            )
        elif name == "magnitude_prune, threshold":
            threshold(rows, size, first[0])
        elif name.startswith("magnitude_prune"):
            half = "BF16" in size
            prune(rows, size, first[0], torch.bfloat16 if half else torch.float32, not half)
        elif name.startswith("kd_softmax_loss"):
            distill(rows, size, first[0], first[1])
        peers += [{"name": name, **row, "wanted": wanted(name, row["peer"])} for row in rows]
        torch.cuda.empty_cache()
    ours["peers"] = peers
    ours["torch"] = torch.__version__
    with open(path, "w") as file:
        json.dump(ours, file, indent=1)
    table(ours)


def wanted(name, peer):
    """How many times as fast as a peer the operation is to be; 0 where nothing is asked of it."""
    if peer == "compile":
        return 1.2
    if peer.startswith("global_unstructured"):
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


if __name__ == "__main__":
    main(sys.argv[1])
