# Methods of written modules, in TorchScript: what takes more than an expression, mostly because it depends on ranks
# and sizes that only the inputs tell. A module has those that it needs, with the methods that these call.
#
# Lists of sizes grow by +, never by append: libtorch's shape analysis takes a list for as long as it was when it was
# made, and would believe a tensor of such a shape to have no axes.
#
# Types of elements are PyTorch's numbers: 0 uint8, 3 int32, 4 int64, 6 float32, 7 float64, 11 bool.

def _integers(self, x: Tensor) -> List[int]:
    values: List[int] = x.reshape([-1]).to(4).tolist()
    return values


def _wrap(self, index: Tensor, size: int) -> Tensor:
    i = index.to(4)
    return i + (i < 0) * size


# Integers are divided towards zero; after the remainder is gone the quotient is exact.
def _divide(self, a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return torch.div(a, b)
    return torch.floor_divide(a - torch.fmod(a, b), b)


def _target(self, x: Tensor, target: List[int]) -> List[int]:
    shape: List[int] = []
    for i in range(len(target)):
        shape = shape + [x.size(i) if target[i] == 0 else target[i]]
    return shape


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


def _reverse(self, x: Tensor) -> Tensor:
    order: List[int] = []
    for i in range(x.dim()):
        order = order + [x.dim() - 1 - i]
    return x.permute(order)


def _parts(self, size: int, count: int) -> List[int]:
    part = (size + count - 1) // count
    parts: List[int] = []
    for i in range(count):
        parts = parts + [max(0, min(part, size - i * part))]
    return parts


# Views have positive strides only: for others turn the piece around and take every step-th.
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


# The modes: 0 edge, 1 wrap, 2 reflect.
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


def _depth_to_space(self, x: Tensor, b: int, column_first: bool) -> Tensor:
    n, c, h, w = x.size(0), x.size(1) // (b * b), x.size(2), x.size(3)
    if column_first:
        y = x.reshape([n, c, b, b, h, w]).permute([0, 1, 4, 2, 5, 3])
    else:
        y = x.reshape([n, b, b, c, h, w]).permute([0, 3, 4, 1, 5, 2])
    return y.reshape([n, c, h * b, w * b])


def _space_to_depth(self, x: Tensor, b: int) -> Tensor:
    n, c, h, w = x.size(0), x.size(1), x.size(2) // b, x.size(3) // b
    y = x.reshape([n, c, h, b, w, b]).permute([0, 3, 5, 1, 2, 4])
    return y.reshape([n, c * b * b, h, w])


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


def _rows(self, x: Tensor, indices: Tensor) -> Tensor:
    flat = torch.zeros_like(indices.select(-1, 0), dtype=4)
    for d in range(indices.size(-1)):
        flat = flat * x.size(d) + self._wrap(indices.select(-1, d), x.size(d))
    return flat.reshape([-1])


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


def _axes(self, x: Tensor, axes: List[int]) -> List[int]:
    if len(axes) > 0:
        return axes
    every: List[int] = []
    for i in range(x.dim()):
        every = every + [i]
    return every


def _mean(self, x: Tensor, axes: List[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keep)
    return torch.mean(x.to(7), axes, keep).to(x.dtype)


def _product(self, x: Tensor, axes: List[int], keep: bool) -> Tensor:
    order: List[int] = []
    for axis in axes:
        order = order + [axis + x.dim() if axis < 0 else axis]
    order.sort()
    y = x
    for i in range(len(order)):
        y = torch.prod(y, order[len(order) - 1 - i], keep, dtype=x.dtype)
    return y


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


def _spatial(self, x: Tensor) -> List[int]:
    axes: List[int] = []
    for i in range(2, x.dim()):
        axes = axes + [i]
    return axes


def _normalized(self, x: Tensor, axis: int) -> List[int]:
    start = axis + x.dim() if axis < 0 else axis
    return x.size()[start:x.dim()]


def _inverse_root(self, x: Tensor, count: int, epsilon: float) -> Tensor:
    axes: List[int] = []
    for i in range(count):
        axes = axes + [x.dim() - count + i]
    return torch.rsqrt(torch.mean(torch.mul(x, x), axes, True) + epsilon)


def _embedded(self, tokens: Tensor, parts: Optional[Tensor], words: Tensor, \
        places: Tensor, segments: Optional[Tensor], given: Optional[Tensor]) -> Tensor:
    place = torch.arange(tokens.size(1), dtype=4, device=tokens.device)
    if given is not None:
        place = given.to(4)
    x = torch.add(torch.embedding(words, tokens.to(4)), torch.embedding(places, place))
    if parts is not None and segments is not None:
        x = torch.add(x, torch.embedding(segments, parts.to(4)))
    return x


def _lengths(self, tokens: Tensor, mask: Optional[Tensor]) -> Tensor:
    there = torch.zeros_like(tokens)
    if mask is not None:
        there = torch.eq(mask, 1)
    return torch.sum(there, [1]).to(3)


def _turned(self, x: Tensor, last: bool, batch: bool) -> Tensor:
    y = torch.movedim(x, 0, -2) if batch else x
    return y.transpose(-2, -1) if last and y.dim() > 1 else y


# What a convolution or pool adds to each axis before, after, and after for a last partial window.
# The modes: 0 given pads, 1 as many outputs as inputs with more pads after, 2 more before.
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


def _padded(self, x: Tensor, before: List[int], after: List[int], value: float) -> Tensor:
    pads: List[int] = []
    for i in range(len(before)):
        pads = pads + [before[len(before) - 1 - i]]
        pads = pads + [after[len(before) - 1 - i]]
    return torch.constant_pad_nd(x, pads, value)


def _widened(self, x: Tensor, geometry: List[List[int]], value: float, \
        rest: float) -> Tensor:
    y = self._padded(x, geometry[0], geometry[1], value)
    zeros: List[int] = []
    for i in geometry[2]:
        zeros = zeros + [0]
    return self._padded(y, zeros, geometry[2], rest)


def _dropout(self, x: Tensor, ratio: float, always: bool) -> Tuple[Tensor, Tensor]:
    if ratio == 0.0 or not (always or self.training):
        return x, torch.ones_like(x, dtype=11)
    kept = torch.ge(torch.rand_like(x), ratio)
    return x * kept * (1.0 / (1.0 - ratio)), kept


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


def _centred(self, x: Tensor, axes: List[int]) -> Tensor:
    y = x - torch.mean(x, axes, True)
    return torch.div(y, torch.sqrt(torch.mean(y * y, axes, True)) + 1.0e-9)


def _along(self, v: Tensor, x: Tensor, axis: int) -> Tensor:
    shape: List[int] = []
    if v.numel() > 1:
        at = axis + x.dim() if axis < 0 else axis
        for i in range(x.dim()):
            shape = shape + [v.numel() if i == at else 1]
    return v.reshape(shape)


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


# Halves to even. A zero point tells the type.
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


def _dequantize(self, x: Tensor, scale: Tensor, zero: Optional[Tensor], \
        axis: int, dtype: Optional[int]) -> Tensor:
    centred = x.to(3)
    if zero is not None:
        centred = centred - self._along(zero, x, axis).to(3)
    wanted = scale.dtype
    if dtype is not None:
        wanted = dtype
    return torch.mul(centred.to(wanted), self._along(scale, x, axis).to(wanted))


# All zeros: ONNX Runtime then has a scale of 1.
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


# In float64, which holds all sums of int32 products.
def _exact(self, x: Tensor, zero: Optional[Tensor], axis: int) -> Tensor:
    wide = x.to(7)
    if zero is not None:
        z = zero.to(7)
        if z.dim() == 1 and z.numel() > 1:
            z = z.unsqueeze(axis)
        wide = wide - z
    return wide


def _numbers(self, x: Tensor) -> List[float]:
    values: List[float] = x.reshape([-1]).to(7).tolist()
    return values


# Where the elements of an output lie in the input, by the rules of the ONNX operator Resize.
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


def _cubic(self, t: Tensor, a: float) -> List[Tensor]:
    s = 1 - t
    return [ \
        ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a, \
        ((a + 2) * t - (a + 3)) * t * t + 1, \
        ((a + 2) * s - (a + 3)) * s * s + 1, \
        ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a]


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


# Attention and turning positions, as operators of ONNX Runtime have them.
def _at(self, table: Tensor, positions: Tensor) -> Tensor:
    found = torch.index_select(table, 0, positions.to(4).reshape([-1]))
    return found.reshape([positions.size(0), 1, positions.size(1), table.size(1)])


def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    pairs = cos.size(-1)
    turning = torch.narrow(x, -1, 0, 2 * pairs)
    if interleaved:
        both = turning.reshape([x.size(0), x.size(1), x.size(2), pairs, 2])
        a = both.select(-1, 0)
        b = both.select(-1, 1)
    else:
        a = torch.narrow(turning, -1, 0, pairs)
        b = torch.narrow(turning, -1, pairs, pairs)
    first = torch.sub(torch.mul(a, cos), torch.mul(b, sin))
    second = torch.add(torch.mul(a, sin), torch.mul(b, cos))
    if interleaved:
        y = torch.flatten(torch.stack([first, second], -1), -2, -1)
    else:
        y = torch.cat([first, second], -1)
    rest = x.size(-1) - 2 * pairs
    if rest == 0:
        return y
    return torch.cat([y, torch.narrow(x, -1, 2 * pairs, rest)], -1)


def _rotary(self, x: Tensor, given: Tensor, cosines: Tensor, sines: Tensor, \
        interleaved: bool, heads: int, rotated: int) -> Tensor:
    apart = x.dim() == 4
    y = x
    if not apart:
        width = x.size(2) // heads if rotated > 0 else 2 * cosines.size(1)
        y = x.reshape([x.size(0), x.size(1), -1, width]).transpose(1, 2)
    positions = given
    if given.numel() == 1:
        step = torch.arange(y.size(2), dtype=4, device=x.device).unsqueeze(0)
        positions = step + given.reshape([1, 1])
    cos = self._at(cosines, positions)
    sin = self._at(sines, positions)
    z = self._rotate(y, cos, sin, interleaved)
    return z if apart else z.transpose(1, 2).reshape(x.size())


def _heads(self, x: Tensor, heads: int) -> Tensor:
    y = x.reshape([x.size(0), x.size(1), heads, x.size(2) // heads])
    return y.transpose(1, 2)


def _present(self, past: Optional[Tensor], now: Tensor, begins: bool, before: Tensor, \
        last: Tensor, total: int) -> Tensor:
    old = 0 if past is None else past.size(2)
    size = max(old, total)
    if begins:
        return torch.constant_pad_nd(now, [0, 0, 0, size - now.size(2)], 0)
    assert past is not None, "texts go on after tokens that no input holds"
    place = torch.arange(size, dtype=4, device=now.device).unsqueeze(0)
    index = torch.where(place < before, place, place - before + old)
    index = torch.clamp(index, 0, old + now.size(2) - 1).unsqueeze(1).unsqueeze(-1)
    shape = [index.size(0), now.size(1), size, now.size(3)]
    both = torch.gather(torch.cat([past, now], 2), 2, index.expand(shape))
    return torch.masked_fill(both, (place > last).unsqueeze(1).unsqueeze(-1), 0)


def _group_query(self, query: Tensor, key: Optional[Tensor], value: Optional[Tensor], \
        past_key: Optional[Tensor], past_value: Optional[Tensor], lengths: Tensor, total: int, \
        cosines: Optional[Tensor], sines: Optional[Tensor], positions: Optional[Tensor], \
        bias: Optional[Tensor], sink: Optional[Tensor], heads: int, shared: int, scale: float, \
        cap: float, window: int, smooth: bool, interleaved: bool) -> Tuple[Tensor, Tensor, Tensor]:
    if key is not None and value is not None:
        q = self._heads(query, heads)
        k = self._heads(key, shared)
        v = self._heads(value, shared)
    else:
        width = query.size(2) // (heads + 2 * shared)
        q = self._heads(torch.narrow(query, 2, 0, heads * width), heads)
        k = self._heads(torch.narrow(query, 2, heads * width, shared * width), shared)
        start = (heads + shared) * width
        v = self._heads(torch.narrow(query, 2, start, shared * width), shared)
    tokens = q.size(2)
    last = lengths.to(4).reshape([-1, 1])
    begins = tokens == total
    step = torch.arange(tokens, dtype=4, device=q.device).unsqueeze(0)
    before = torch.zeros_like(last) if begins else last - (tokens - 1)
    places = step + before
    if cosines is not None and sines is not None:
        given = torch.where(places > last, torch.ones_like(places), places)
        if positions is not None:
            given = positions
        cos = self._at(cosines, given)
        sin = self._at(sines, given)
        q = self._rotate(q, cos, sin, interleaved)
        k = self._rotate(k, cos, sin, interleaved)
    keys = self._present(past_key, k, begins, before, last, total)
    values = self._present(past_value, v, begins, before, last, total)
    many = heads // shared
    read = k if begins else keys
    seen = v if begins else values
    if many > 1:
        read = torch.repeat_interleave(read, many, 1)
        seen = torch.repeat_interleave(seen, many, 1)
    factor = scale if scale != 0.0 else q.size(3) ** -0.5
    scores = torch.matmul(torch.mul(q, factor), read.transpose(-2, -1))
    if cap > 0.0:
        scores = torch.mul(torch.tanh(torch.div(scores, cap)), cap)
    if bias is not None:
        scores = torch.add(scores, torch.narrow(bias, -1, 0, read.size(2)))
    place = places.unsqueeze(1).unsqueeze(-1)
    at = torch.arange(read.size(2), dtype=4, device=q.device)
    hidden = at > place
    if window > 0:
        hidden = torch.logical_or(hidden, at <= place - window)
    scores = torch.masked_fill(scores, hidden, -float('inf'))
    if smooth or sink is not None:
        none = torch.zeros_like(torch.narrow(scores, -1, 0, 1))
        if sink is not None:
            none = torch.add(none, sink.reshape([-1, 1, 1]))
        weights = torch.softmax(torch.cat([scores, none], -1), -1)
        weights = torch.narrow(weights, -1, 0, scores.size(-1))
    else:
        weights = torch.softmax(scores, -1)
    y = torch.matmul(weights, seen).transpose(1, 2)
    return torch.flatten(y, 2, 3), keys, values


def _hidden(self, mask: Tensor, texts: int, all: int) -> Tensor:
    if mask.dim() == 2:
        return (mask <= 0).unsqueeze(1).unsqueeze(1)
    if mask.dim() == 3:
        return (mask <= 0).unsqueeze(1)
    place = torch.arange(all, dtype=4, device=mask.device).unsqueeze(0)
    out = place >= torch.narrow(mask, 0, 0, texts).unsqueeze(1)
    if mask.size(0) == 2 * texts:
        starts = torch.narrow(mask, 0, texts, texts).unsqueeze(1)
        out = torch.logical_or(out, place < starts)
    return out.unsqueeze(1).unsqueeze(1)


def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], \
        bias: Optional[Tensor], scale: float, filter: float, causal: bool) -> Tensor:
    factor = scale if scale != 0.0 else q.size(3) ** -0.5
    scores = torch.matmul(torch.mul(q, factor), k.transpose(-2, -1))
    if bias is not None:
        scores = torch.add(scores, bias)
    tokens = q.size(2)
    all = k.size(2)
    if mask is not None:
        hidden = self._hidden(mask, q.size(0), all)
        scores = torch.add(scores, torch.mul(hidden.to(6), filter))
    if causal and tokens > 1:
        place = torch.arange(tokens, dtype=4, device=q.device) + (all - tokens)
        at = torch.arange(all, dtype=4, device=q.device)
        later = at > place.unsqueeze(-1)
        scores = torch.masked_fill(scores, later, -3.4028234663852886e+38)
    y = torch.matmul(torch.softmax(scores, -1), v).transpose(1, 2)
    return torch.flatten(y, 2, 3)


def _multi_head(self, query: Tensor, key: Tensor, value: Tensor, bias: Optional[Tensor], \
        mask: Optional[Tensor], scores: Optional[Tensor], past_key: Optional[Tensor], \
        past_value: Optional[Tensor], heads: int, scale: float, filter: float, \
        causal: bool) -> Tuple[Tensor, Tensor, Tensor]:
    q = query
    k = key
    v = value
    if bias is not None:
        width = q.size(2)
        q = torch.add(q, torch.narrow(bias, 0, 0, width))
        k = torch.add(k, torch.narrow(bias, 0, width, width))
        v = torch.add(v, torch.narrow(bias, 0, 2 * width, v.size(2)))
    q = self._heads(q, heads)
    if k.dim() == 3:
        k = self._heads(k, heads)
    if v.dim() == 3:
        v = self._heads(v, heads)
    if past_key is not None and past_value is not None:
        k = torch.cat([past_key, k], 2)
        v = torch.cat([past_value, v], 2)
    return self._attend(q, k, v, mask, scores, scale, filter, causal), k, v


def _attention(self, x: Tensor, w: Tensor, b: Optional[Tensor], mask: Optional[Tensor], \
        past: Optional[Tensor], scores: Optional[Tensor], heads: int, widths: List[int], \
        scale: float, filter: float, causal: bool) -> Tuple[Tensor, Tensor, Tensor]:
    all = torch.matmul(x, w)
    if b is not None:
        all = torch.add(all, b)
    third = w.size(1) // 3
    parts = [third, third, third] if len(widths) == 0 else widths
    q = self._heads(torch.narrow(all, 2, 0, parts[0]), heads)
    k = self._heads(torch.narrow(all, 2, parts[0], parts[1]), heads)
    v = self._heads(torch.narrow(all, 2, parts[0] + parts[1], parts[2]), heads)
    if past is not None:
        k = torch.cat([past.select(0, 0), k], 2)
        v = torch.cat([past.select(0, 1), v], 2)
    return self._attend(q, k, v, mask, scores, scale, filter, causal), k, v


# The same, as ONNX has them.
def _rotary_embedding(self, x: Tensor, cosines: Tensor, sines: Tensor, \
        positions: Optional[Tensor], interleaved: bool, heads: int, rotated: int) -> Tensor:
    apart = x.dim() == 4
    assert apart or heads > 0, "rows of numbers need num_heads"
    y = x if apart else self._heads(x, heads)
    turned = rotated if rotated > 0 else y.size(3)
    assert 2 * cosines.size(-1) == turned, "the cosines are not of all numbers that turn"
    cos = torch.unsqueeze(cosines, 1)
    sin = torch.unsqueeze(sines, 1)
    if positions is not None:
        cos = self._at(cosines, positions)
        sin = self._at(sines, positions)
    z = self._rotate(y, cos, sin, interleaved)
    return z if apart else torch.flatten(z.transpose(1, 2), 2, 3)


def _standard_attention(self, query: Tensor, key: Tensor, value: Tensor, \
        mask: Optional[Tensor], past_key: Optional[Tensor], past_value: Optional[Tensor], \
        lengths: Optional[Tensor], heads: int, groups: int, causal: bool, scale: float, \
        cap: float, given: int) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    q = query
    k = key
    v = value
    apart = query.dim() == 4
    if not apart:
        assert heads > 0, "rows of numbers need q_num_heads and kv_num_heads"
        q = self._heads(query, heads)
        k = self._heads(key, groups)
        v = self._heads(value, groups)
    before = 0
    if past_key is not None and past_value is not None:
        before = past_key.size(2)
        k = torch.cat([past_key, k], 2)
        v = torch.cat([past_value, v], 2)
    queries = q.size(1) // k.size(1)
    assert queries * k.size(1) == q.size(1), "queries are no multiple of keys"
    read = k
    seen = v
    if queries > 1:
        read = torch.repeat_interleave(k, queries, 1)
        seen = torch.repeat_interleave(v, queries, 1)
    factor = scale if scale != 0.0 else q.size(3) ** -0.5
    scores = torch.matmul(torch.mul(q, factor), read.transpose(-2, -1))
    told = scores
    if cap > 0.0:
        scores = torch.mul(torch.tanh(torch.div(scores, cap)), cap)
    if given == 1:
        told = scores
    tokens = q.size(2)
    all = k.size(2)
    hidden = -float('inf')
    if mask is not None:
        bias = mask
        missing = all - bias.size(-1)
        if bias.dtype == 11:
            if missing > 0:
                bias = torch.constant_pad_nd(bias, [0, missing], 0)
            scores = torch.masked_fill(scores, torch.logical_not(bias), hidden)
        else:
            if missing > 0:
                bias = torch.constant_pad_nd(bias, [0, missing], hidden)
            scores = torch.add(scores, bias)
    at = torch.arange(all, dtype=4, device=q.device)
    if causal:
        place = torch.arange(tokens, dtype=4, device=q.device).unsqueeze(-1)
        if lengths is not None:
            place = place + lengths.reshape([-1, 1, 1, 1]) - tokens
        else:
            place = place + before
        scores = torch.masked_fill(scores, at > place, hidden)
    if lengths is not None:
        behind = at >= lengths.reshape([-1, 1, 1, 1])
        scores = torch.masked_fill(scores, behind, hidden)
    if given == 2:
        told = scores
    if mask is not None or lengths is not None:
        blind = torch.eq(torch.amax(scores.detach(), [-1], True), hidden)
        shares = torch.softmax(torch.masked_fill(scores, blind, 0), -1)
        shares = torch.masked_fill(shares, blind, 0)
    else:
        shares = torch.softmax(scores, -1)
    if given == 3:
        told = shares
    y = torch.matmul(shares, seen)
    if not apart:
        y = torch.flatten(y.transpose(1, 2), 2, 3)
    return y, k, v, told
