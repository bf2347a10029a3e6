package org.espalier.torch.onnx;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Methods of written modules: what takes more than an expression, mostly because it depends on ranks and sizes
 * that only the inputs tell. A method is in a module that needs it.
 *
 * <p>Lists of sizes grow by {@code +}, never by {@code append}: libtorch's shape analysis takes a list for as
 * long as it was when it was made, and would believe a tensor of such a shape to have no axes.
 */
final class ScriptHelpers {
  private static final Map<String, String> SOURCES = new LinkedHashMap<>();

  static {
    define(
        """
        def _integers(self, x: Tensor) -> List[int]:
            values: List[int] = x.reshape([-1]).to(4).tolist()
            return values
        """);
    define(
        """
        def _wrap(self, index: Tensor, size: int) -> Tensor:
            i = index.to(4)
            return i + (i < 0) * size
        """);
    // Integers are divided towards zero; after the remainder is gone the quotient is exact.
    define(
        """
        def _divide(self, a: Tensor, b: Tensor) -> Tensor:
            if a.is_floating_point():
                return torch.div(a, b)
            return torch.floor_divide(a - torch.fmod(a, b), b)
        """);
    define(
        """
        def _target(self, x: Tensor, target: List[int]) -> List[int]:
            shape: List[int] = []
            for i in range(len(target)):
                shape = shape + [x.size(i) if target[i] == 0 else target[i]]
            return shape
        """);
    define(
        """
        def _expanded(self, x: Tensor, target: List[int]) -> List[int]:
            shape: List[int] = []
            rank = max(x.dim(), len(target))
            for i in range(rank):
                own = i - (rank - x.dim())
                given = i - (rank - len(target))
                size = x.size(own) if own >= 0 else 1
                wanted = target[given] if given >= 0 else 1
                shape = shape + [size if wanted == 1 else wanted]
            return shape
        """);
    define(
        """
        def _flatten(self, x: Tensor, axis: int) -> Tensor:
            rows = 1
            columns = 1
            start = axis + x.dim() if axis < 0 else axis
            for i in range(x.dim()):
                if i < start:
                    rows = rows * x.size(i)
                else:
                    columns = columns * x.size(i)
            return x.reshape([rows, columns])
        """);
    define(
        """
        def _unsqueeze(self, x: Tensor, axes: List[int]) -> Tensor:
            rank = x.dim() + len(axes)
            order: List[int] = []
            for axis in axes:
                order = order + [axis + rank if axis < 0 else axis]
            order.sort()
            y = x
            for axis in order:
                y = y.unsqueeze(axis)
            return y
        """);
    define(
        """
        def _reverse(self, x: Tensor) -> Tensor:
            order: List[int] = []
            for i in range(x.dim()):
                order = order + [x.dim() - 1 - i]
            return x.permute(order)
        """);
    define(
        """
        def _parts(self, size: int, count: int) -> List[int]:
            part = (size + count - 1) // count
            parts: List[int] = []
            for i in range(count):
                parts = parts + [max(0, min(part, size - i * part))]
            return parts
        """);
    // Views have positive strides only: for others turn the piece around and take every step-th.
    define(
        """
        def _slice(self, x: Tensor, starts: List[int], ends: List[int], axes: List[int], \
        steps: List[int]) -> Tensor:
            y = x
            for i in range(len(starts)):
                axis = i if len(axes) == 0 else axes[i]
                step = 1 if len(steps) == 0 else steps[i]
                size = x.size(axis)
                start = starts[i] + size if starts[i] < 0 else starts[i]
                end = ends[i] + size if ends[i] < 0 else ends[i]
                if step > 0:
                    start = max(0, min(start, size))
                    end = max(start, min(end, size))
                    y = torch.slice(y, axis, start, end, step)
                else:
                    start = max(-1, min(start, size - 1))
                    end = max(-1, min(end, start))
                    y = torch.slice(y, axis, end + 1, start + 1, 1)
                    y = torch.slice(torch.flip(y, [axis]), axis, None, None, -step)
            return y
        """);
    define(
        """
        def _pads(self, x: Tensor, given: List[int], axes: List[int]) -> List[int]:
            rank = x.dim()
            count = rank if len(axes) == 0 else len(axes)
            pads: List[int] = []
            for i in range(2 * rank):
                pads = pads + [0]
            for i in range(count):
                axis = i if len(axes) == 0 else axes[i]
                last = rank - 1 - (axis + rank if axis < 0 else axis)
                pads[2 * last] = given[i]
                pads[2 * last + 1] = given[count + i]
            return pads
        """);
    // The modes: 0 edge, 1 wrap, 2 reflect.
    define(
        """
        def _continue(self, x: Tensor, given: List[int], axes: List[int], mode: int) -> Tensor:
            pads = self._pads(x, given, axes)
            y = x
            for axis in range(x.dim()):
                last = x.dim() - 1 - axis
                before = pads[2 * last]
                after = pads[2 * last + 1]
                if before != 0 or after != 0:
                    size = x.size(axis)
                    i = torch.arange(-before, size + after, dtype=4, device=x.device)
                    if mode == 0:
                        i = torch.clamp(i, 0, size - 1)
                    elif mode == 1:
                        i = torch.remainder(i, size)
                    elif size == 1:
                        i = torch.zeros_like(i)
                    else:
                        i = torch.remainder(i, 2 * (size - 1))
                        i = torch.where(i < size, i, 2 * (size - 1) - i)
                    y = torch.index_select(y, axis, i)
            return y
        """);
    define(
        """
        def _depth_to_space(self, x: Tensor, b: int, column_first: bool) -> Tensor:
            n, c, h, w = x.size(0), x.size(1) // (b * b), x.size(2), x.size(3)
            if column_first:
                y = x.reshape([n, c, b, b, h, w]).permute([0, 1, 4, 2, 5, 3])
            else:
                y = x.reshape([n, b, b, c, h, w]).permute([0, 3, 4, 1, 5, 2])
            return y.reshape([n, c, h * b, w * b])
        """);
    define(
        """
        def _space_to_depth(self, x: Tensor, b: int) -> Tensor:
            n, c, h, w = x.size(0), x.size(1), x.size(2) // b, x.size(3) // b
            y = x.reshape([n, c, h, b, w, b]).permute([0, 3, 5, 1, 2, 4])
            return y.reshape([n, c * b * b, h, w])
        """);
    define(
        """
        def _range(self, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
            if start.is_floating_point():
                a = float(start.item())
                d = float(delta.item())
                count = int(max(0.0, float(torch.ceil((float(limit.item()) - a) / d))))
                return torch.arange(count, dtype=start.dtype, device=start.device) * d + a
            i = int(start.item())
            step = int(delta.item())
            assert step != 0, "the step of a Range is 0"
            sign = 1 if step > 0 else -1
            many = max(0, (int(limit.item()) - i + step - sign) // step)
            return torch.arange(many, dtype=start.dtype, device=start.device) * step + i
        """);
    define(
        """
        def _gather(self, x: Tensor, index: Tensor, axis: int) -> Tensor:
            i = self._wrap(index, x.size(axis))
            if axis == 0 and x.dim() == 2 and x.is_floating_point():
                return torch.embedding(x, i)
            rows = torch.index_select(x, axis, i.reshape([-1]))
            if index.dim() == 1:
                return rows
            a = axis + x.dim() if axis < 0 else axis
            size = x.size()
            return rows.reshape(size[0:a] + index.size() + size[a + 1:len(size)])
        """);
    define(
        """
def _gather_nd(self, x: Tensor, indices: Tensor, batch: int) -> Tensor:
    index: List[Optional[Tensor]] = []
    for b in range(batch):
        along: List[int] = []
        for k in range(indices.dim() - 1):
            along = along + [indices.size(b) if k == b else 1]
        index.append(torch.arange(indices.size(b), dtype=4, device=x.device).reshape(along))
    for d in range(indices.size(-1)):
        index.append(self._wrap(indices.select(-1, d), x.size(batch + d)))
    return torch.index(x, index)
""");
    define(
        """
        def _rows(self, x: Tensor, indices: Tensor) -> Tensor:
            flat = torch.zeros_like(indices.select(-1, 0), dtype=4)
            for d in range(indices.size(-1)):
                flat = flat * x.size(d) + self._wrap(indices.select(-1, d), x.size(d))
            return flat.reshape([-1])
        """);
    define(
        """
        def _tensor_scatter(self, cache: Tensor, update: Tensor, start: Optional[Tensor], \
        axis: int, circular: bool) -> Tensor:
            along = [1] * update.dim()
            along[axis] = update.size(axis)
            place = torch.arange(update.size(axis), dtype=4, device=update.device).reshape(along)
            if start is not None:
                along[axis] = 1
                along[0] = update.size(0)
                place = place + start.reshape(along)
            if circular:
                place = torch.remainder(place, cache.size(axis))
            return torch.scatter(cache, axis, place.expand(update.size()), update)
        """);
    define(
        """
        def _scatter_nd(self, x: Tensor, indices: Tensor, updates: Tensor, reduce: str) -> Tensor:
            row = self._rows(x, indices)
            rows = 1
            width = 1
            for d in range(x.dim()):
                if d < indices.size(-1):
                    rows = rows * x.size(d)
                else:
                    width = width * x.size(d)
            data = x.reshape([rows, width])
            values = updates.reshape([-1, width])
            if reduce == "none" or reduce == "add":
                index: List[Optional[Tensor]] = []
                index.append(row)
                data = torch.index_put(data, index, values, reduce == "add")
            else:
                wide = row.unsqueeze(1).expand(values.size())
                data = torch.scatter_reduce(data, 0, wide, values, reduce, include_self=True)
            return data.reshape(x.size())
        """);
    define(
        """
        def _one_hot(self, indices: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
            index = self._wrap(indices, depth)
            rank = index.dim() + 1
            at = axis + rank if axis < 0 else axis
            along: List[int] = []
            for i in range(rank):
                along = along + [depth if i == at else 1]
            classes = torch.arange(depth, dtype=4, device=index.device).reshape(along)
            hit = torch.eq(index.unsqueeze(at), classes)
            return torch.where(hit, values.select(0, 1), values.select(0, 0))
        """);
    define(
        """
        def _axes(self, x: Tensor, axes: List[int]) -> List[int]:
            if len(axes) > 0:
                return axes
            every: List[int] = []
            for i in range(x.dim()):
                every = every + [i]
            return every
        """);
    define(
        """
        def _mean(self, x: Tensor, axes: List[int], keep: bool) -> Tensor:
            if x.is_floating_point():
                return torch.mean(x, axes, keep)
            return torch.mean(x.to(7), axes, keep).to(x.dtype)
        """);
    define(
        """
        def _product(self, x: Tensor, axes: List[int], keep: bool) -> Tensor:
            order: List[int] = []
            for axis in axes:
                order = order + [axis + x.dim() if axis < 0 else axis]
            order.sort()
            y = x
            for i in range(len(order)):
                y = torch.prod(y, order[len(order) - 1 - i], keep, dtype=x.dtype)
            return y
        """);
    define(
        """
        def _cumulate(self, x: Tensor, axis: int, product: bool, exclusive: bool, \
        reverse: bool) -> Tensor:
            y = torch.flip(x, [axis]) if reverse else x
            if product:
                all = torch.cumprod(y, axis, dtype=x.dtype)
            else:
                all = torch.cumsum(y, axis, dtype=x.dtype)
            if exclusive:
                size = x.size(axis)
                first = torch.narrow(y, axis, 0, min(1, size))
                first = torch.ones_like(first) if product else torch.zeros_like(first)
                all = torch.cat([first, torch.narrow(all, axis, 0, max(0, size - 1))], axis)
            return torch.flip(all, [axis]) if reverse else all
        """);
    define(
        """
        def _spatial(self, x: Tensor) -> List[int]:
            axes: List[int] = []
            for i in range(2, x.dim()):
                axes = axes + [i]
            return axes
        """);
    define(
        """
        def _normalized(self, x: Tensor, axis: int) -> List[int]:
            start = axis + x.dim() if axis < 0 else axis
            return x.size()[start:x.dim()]
        """);
    define(
        """
        def _inverse_root(self, x: Tensor, count: int, epsilon: float) -> Tensor:
            axes: List[int] = []
            for i in range(count):
                axes = axes + [x.dim() - count + i]
            return torch.rsqrt(torch.mean(torch.mul(x, x), axes, True) + epsilon)
        """);
    define(
        """
        def _embedded(self, tokens: Tensor, parts: Optional[Tensor], words: Tensor, \
        places: Tensor, segments: Optional[Tensor], given: Optional[Tensor]) -> Tensor:
            place = torch.arange(tokens.size(1), dtype=4, device=tokens.device)
            if given is not None:
                place = given.to(4)
            x = torch.add(torch.embedding(words, tokens.to(4)), torch.embedding(places, place))
            if parts is not None and segments is not None:
                x = torch.add(x, torch.embedding(segments, parts.to(4)))
            return x
        """);
    define(
        """
        def _lengths(self, tokens: Tensor, mask: Optional[Tensor]) -> Tensor:
            there = torch.zeros_like(tokens)
            if mask is not None:
                there = torch.eq(mask, 1)
            return torch.sum(there, [1]).to(3)
        """);
    define(
        """
        def _turned(self, x: Tensor, last: bool, batch: bool) -> Tensor:
            y = torch.movedim(x, 0, -2) if batch else x
            return y.transpose(-2, -1) if last and y.dim() > 1 else y
        """);
    // What a convolution or pool adds to each axis before, after, and after for a last partial
    // window.
    // The modes: 0 given pads, 1 as many outputs as inputs with more pads after, 2 more before.
    define(
        """
        def _geometry(self, x: Tensor, kernel: List[int], strides: List[int], \
        dilations: List[int], pads: List[int], mode: int, ceiling: bool) -> List[List[int]]:
            axes = len(kernel)
            before: List[int] = []
            after: List[int] = []
            extra: List[int] = []
            for i in range(axes):
                size = x.size(i + 2)
                window = (kernel[i] - 1) * dilations[i] + 1
                low = pads[i]
                high = pads[i + axes]
                if mode > 0:
                    out = (size + strides[i] - 1) // strides[i]
                    total = max(0, (out - 1) * strides[i] + window - size)
                    low = total - total // 2 if mode == 2 else total // 2
                    high = total - low
                more = 0
                if ceiling:
                    room = size + low + high - window
                    steps = (room + strides[i] - 1) // strides[i]
                    if steps * strides[i] >= size + low:
                        steps = steps - 1
                    more = max(0, steps * strides[i] - room)
                before = before + [low]
                after = after + [high]
                extra = extra + [more]
            return [before, after, extra]
        """);
    define(
        """
        def _padded(self, x: Tensor, before: List[int], after: List[int], value: float) -> Tensor:
            pads: List[int] = []
            for i in range(len(before)):
                pads = pads + [before[len(before) - 1 - i]]
                pads = pads + [after[len(before) - 1 - i]]
            return torch.constant_pad_nd(x, pads, value)
        """);
    define(
        """
        def _widened(self, x: Tensor, geometry: List[List[int]], value: float, \
        rest: float) -> Tensor:
            y = self._padded(x, geometry[0], geometry[1], value)
            zeros: List[int] = []
            for i in geometry[2]:
                zeros = zeros + [0]
            return self._padded(y, zeros, geometry[2], rest)
        """);
    define(
        """
        def _dropout(self, x: Tensor, ratio: float, always: bool) -> Tuple[Tensor, Tensor]:
            if ratio == 0.0 or not (always or self.training):
                return x, torch.ones_like(x, dtype=11)
            kept = torch.ge(torch.rand_like(x), ratio)
            return x * kept * (1.0 / (1.0 - ratio)), kept
        """);
    define(
        """
def _response(self, x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    before = (size - 1) // 2
    pads: List[int] = []
    for i in range(x.dim() - 2):
        pads = pads + [0]
        pads = pads + [0]
    squares = torch.constant_pad_nd(x * x, pads + [before, size - 1 - before], 0)
    sums = torch.narrow(squares, 1, 0, x.size(1))
    for i in range(1, size):
        sums = sums + torch.narrow(squares, 1, i, x.size(1))
    return torch.div(x, torch.pow(sums * alpha + bias, beta))
""");
    define(
        """
        def _centred(self, x: Tensor, axes: List[int]) -> Tensor:
            y = x - torch.mean(x, axes, True)
            return torch.div(y, torch.sqrt(torch.mean(y * y, axes, True)) + 1.0e-9)
        """);
    define(
        """
        def _along(self, v: Tensor, x: Tensor, axis: int) -> Tensor:
            shape: List[int] = []
            if v.numel() > 1:
                at = axis + x.dim() if axis < 0 else axis
                for i in range(x.dim()):
                    shape = shape + [v.numel() if i == at else 1]
            return v.reshape(shape)
        """);
    define(
        """
        def _saturate(self, q: Tensor, dtype: int) -> Tensor:
            low = 0
            high = 255
            if dtype == 1:
                low = -128
                high = 127
            elif dtype == 2:
                low = -32768
                high = 32767
            elif dtype == 27:
                high = 65535
            else:
                assert dtype == 0, "integers of another type than 8 and 16 bits"
            return torch.clamp(q, low, high).to(dtype)
        """);
    // Halves to even. A zero point tells the type.
    define(
        """
        def _quantize(self, x: Tensor, scale: Tensor, zero: Optional[Tensor], dtype: int, \
        axis: int, precision: Optional[int]) -> Tensor:
            a = x
            b = self._along(scale, x, axis)
            if precision is not None:
                a = a.to(precision)
                b = b.to(precision)
            q = torch.round(torch.div(a, b))
            wanted = dtype
            if zero is not None:
                q = q + self._along(zero, x, axis).to(q.dtype)
                wanted = zero.dtype
            return self._saturate(q, wanted)
        """);
    define(
        """
        def _dequantize(self, x: Tensor, scale: Tensor, zero: Optional[Tensor], \
        axis: int, dtype: Optional[int]) -> Tensor:
            centred = x.to(3)
            if zero is not None:
                centred = centred - self._along(zero, x, axis).to(3)
            wanted = scale.dtype
            if dtype is not None:
                wanted = dtype
            return torch.mul(centred.to(wanted), self._along(scale, x, axis).to(wanted))
        """);
    // All zeros: ONNX Runtime then has a scale of 1.
    define(
        """
        def _dynamic(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
            every: List[int] = []
            least = torch.amin(x, every)
            low = torch.minimum(least, torch.zeros_like(least))
            high = torch.maximum(torch.amax(x, every), torch.zeros_like(least))
            scale = torch.div(high - low, 255)
            scale = torch.where(torch.eq(scale, 0), torch.ones_like(scale), scale)
            share = torch.clamp(torch.div(torch.neg(low), scale), 0, 255)
            zero = self._saturate(torch.round(share), 0)
            return self._quantize(x, scale, zero, 0, 0, None), scale, zero
        """);
    // In float64, which holds all sums of int32 products.
    define(
        """
        def _exact(self, x: Tensor, zero: Optional[Tensor], axis: int) -> Tensor:
            wide = x.to(7)
            if zero is not None:
                z = zero.to(7)
                if z.dim() == 1 and z.numel() > 1:
                    z = z.unsqueeze(axis)
                wide = wide - z
            return wide
        """);
    define(
        """
        def _numbers(self, x: Tensor) -> List[float]:
            values: List[float] = x.reshape([-1]).to(7).tolist()
            return values
        """);
    // Where the elements of an output lie in the input, by the rules of the ONNX operator Resize.
    define(
        """
        def _positions(self, x: Tensor, size: int, target: int, scale: float, rule: str) -> Tensor:
            i = torch.arange(target, dtype=7, device=x.device)
            if target == 1 and (rule == "align_corners" or rule == "pytorch_half_pixel"):
                return torch.zeros_like(i)
            if rule == "align_corners":
                return i * (size - 1.0) / (target - 1)
            if rule == "asymmetric":
                return i / scale
            if rule == "tf_half_pixel_for_nn":
                return (i + 0.5) / scale
            if rule == "half_pixel_symmetric":
                offset = size / 2.0 * (1 - target / (scale * size))
                return (i + 0.5) / scale + offset - 0.5
            return (i + 0.5) / scale - 0.5
        """);
    define(
        """
        def _cubic(self, t: Tensor, a: float) -> List[Tensor]:
            s = 1 - t
            return [ \
        ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a, \
        ((a + 2) * t - (a + 3)) * t * t + 1, \
        ((a + 2) * s - (a + 3)) * s * s + 1, \
        ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a]
        """);
    define(
        """
        def _resampled(self, x: Tensor, axis: int, target: int, scale: float, mode: str, \
        rule: str, nearest: str, cubic: float, exclude: bool) -> Tensor:
            size = x.size(axis)
            p = self._positions(x, size, target, scale, rule)
            if mode == "nearest":
                if nearest == "floor":
                    p = torch.floor(p)
                elif nearest == "ceil":
                    p = torch.ceil(p)
                elif nearest == "round_prefer_ceil":
                    p = torch.floor(p + 0.5)
                else:
                    p = torch.ceil(p - 0.5)
                return torch.index_select(x, axis, torch.clamp(p.to(4), 0, size - 1))
            low = torch.floor(p)
            t = p - low
            parts = [1 - t, t]
            first = 0
            if mode == "cubic":
                parts = self._cubic(t, cubic)
                first = -1
            weights = torch.zeros([target, size], dtype=7, device=x.device)
            sums = torch.zeros_like(t)
            columns: List[Tensor] = []
            for k in range(len(parts)):
                column = low.to(4) + (first + k)
                if exclude:
                    outside = torch.logical_or(column < 0, column >= size)
                    parts[k] = torch.where(outside, torch.zeros_like(t), parts[k])
                sums = sums + parts[k]
                columns.append(torch.clamp(column, 0, size - 1).unsqueeze(1))
            for k in range(len(parts)):
                part = torch.div(parts[k], sums) if exclude else parts[k]
                weights = torch.scatter_add(weights, 1, columns[k], part.unsqueeze(1))
            weights = weights.to(x.dtype)
            y = torch.matmul(x.transpose(axis, -1), weights.t())
            return y.transpose(axis, -1)
        """);
    define(
        """
        def _resize(self, x: Tensor, scales: List[float], sizes: List[int], axes: List[int], \
        policy: str, mode: str, rule: str, nearest: str, cubic: float, exclude: bool) -> Tensor:
            count = x.dim() if len(axes) == 0 else len(axes)
            given = len(sizes) if len(sizes) > 0 else len(scales)
            assert given == count, "a Resize needs a scale or a size for each axis"
            common = 0.0
            for k in range(len(sizes)):
                ratio = sizes[k] / x.size(k if len(axes) == 0 else axes[k])
                if k == 0:
                    common = ratio
                elif policy == "not_larger":
                    common = min(common, ratio)
                else:
                    common = max(common, ratio)
            y = x
            for k in range(count):
                axis = k if len(axes) == 0 else axes[k]
                size = x.size(axis)
                scale = common
                target = size
                if len(sizes) == 0:
                    scale = scales[k]
                    target = int(torch.floor(size * scale))
                elif policy == "stretch":
                    target = sizes[k]
                    scale = target / size
                else:
                    target = int(torch.floor(common * size + 0.5))
                if target != size or scale != 1.0:
                    y = self._resampled( \
        y, axis, target, scale, mode, rule, nearest, cubic, exclude)
            return y
        """);
    ScriptAttention.addHelpers(ScriptHelpers::define);
    ScriptStandardAttention.addHelpers(ScriptHelpers::define);
  }

  private ScriptHelpers() {}

  private static void define(String source) {
    SOURCES.put(source.substring("def ".length(), source.indexOf('(')), source);
  }

  static String source(String name) {
    return SOURCES.get(name);
  }

  /** The other methods that one calls. */
  static List<String> uses(String name) {
    String source = SOURCES.get(name);
    return SOURCES.keySet().stream().filter(h -> source.contains("self." + h + "(")).toList();
  }
}
