package org.espalier.torch.script;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.BooleanList;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.JitModule;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.QualifiedName;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.torch.Libtorch;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchScriptModel;
import org.espalier.torch.onnx.GraphScript;
import org.espalier.torch.onnx.OnnxGraph;
import org.espalier.torch.onnx.OnnxRuntime;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** TorchScript modules as graphs, which ONNX Runtime runs with the module's answers. */
@Tag("loops")
class TorchScriptImportTest {
  @TempDir Path folder;

  @BeforeEach
  void load() {
    Libtorch.load();
    torch.manual_seed(4);
  }

  private static JitModule module(String name) {
    JitModule module = new JitModule(new QualifiedName("__torch__." + name));
    module.register_attribute("training", new BooleanList().elementType(), new IValue(true));
    return module;
  }

  private static void parameter(JitModule module, String name, long... shape) {
    module.register_parameter(name, torch.randn(shape).requires_grad_(true), false);
  }

  /** A linear layer as PyTorch's class writes itself. */
  private static JitModule linear(long in, long out) {
    JitModule module = module("Linear");
    parameter(module, "weight", out, in);
    parameter(module, "bias", out);
    module.define(
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    return torch.linear(x, self.weight, self.bias)\n");
    return module;
  }

  private Path saved(JitModule module) {
    Path file = folder.resolve("module.pt");
    module.save(file.toString());
    return file;
  }

  private static void assertSame(Path file, OnnxModel graph, long... example) throws Exception {
    try (TorchScriptModel module = TorchScriptModel.read(file);
        NoGradGuard noGrad = new NoGradGuard();
        PointerScope scope = new PointerScope()) {
      module.train(false);
      for (long batch : new long[] {1, 5}) {
        long[] shape = new long[example.length + 1];
        shape[0] = batch;
        System.arraycopy(example, 0, shape, 1, example.length);
        Map<String, Tensor> x = Map.of(module.inputNames().get(0), torch.randn(shape));
        Tensor expected = module.forward(x).values().iterator().next();
        Tensor actual = OnnxRuntime.run(graph, x).values().iterator().next();
        assertArrayEquals(expected.shape(), actual.shape());
        // float32 through some layers in another order of sums
        assertTrue(torch.allclose(expected, actual, 1e-4, 1e-5, false));
      }
    }
  }

  @Test
  void aPerceptronKeepsItsNamesAndLayout() throws Exception {
    Path file;
    try (PointerScope scope = new PointerScope()) {
      JitModule module = module("Net");
      module.register_module("fc1", linear(6, 8));
      module.register_module("fc2", linear(8, 3));
      parameter(module, "scale", 8);
      module.define(
          "def forward(self, x: Tensor) -> Tensor:\n"
              + "    h = torch.gelu(self.fc1.forward(x))\n"
              + "    h = torch.dropout(h, 0.5, self.training)\n"
              + "    if self.training:\n"
              + "        h = h + torch.rand_like(h)\n"
              + "    h = torch.relu_(h * self.scale + 1)\n"
              + "    return self.fc2.forward(h.view([x.size(0), -1]))\n");
      file = saved(module);
    }
    OnnxModel graph = TorchScriptImport.read(file, List.of(6L));
    assertSame(file, graph, 6);
    try (OnnxGraph trainable = new OnnxGraph(graph)) {
      Map<String, Parameter> parameters = new LinkedHashMap<>();
      trainable.parameters().forEach(p -> parameters.put(p.name(), p));
      assertEquals(Parameter.Kind.LINEAR, parameters.get("fc1.weight").kind());
      assertArrayEquals(new long[] {8, 6}, parameters.get("fc1.weight").tensor().shape());
      assertTrue(parameters.containsKey("fc2.bias") && parameters.containsKey("scale"));
      assertEquals(5, parameters.size(), parameters.keySet().toString());
    }
    // And out again, under the same names.
    Path again = folder.resolve("again.pt");
    GraphScript.write(graph, again);
    try (TorchScriptModel first = TorchScriptModel.read(file);
        TorchScriptModel second = TorchScriptModel.read(again)) {
      assertEquals(
          first.parameters().stream().map(Parameter::name).sorted().toList(),
          second.parameters().stream().map(Parameter::name).sorted().toList());
    }
  }

  @Test
  void aConvolutionalNetworkIsRead() throws Exception {
    Path file;
    try (PointerScope scope = new PointerScope()) {
      JitModule module = module("Net");
      parameter(module, "w1", 8, 3, 3, 3);
      parameter(module, "b1", 8);
      parameter(module, "gamma", 8);
      parameter(module, "beta", 8);
      module.register_buffer("mean", torch.randn(8));
      module.register_buffer("variance", torch.rand(8).add(new org.bytedeco.pytorch.Scalar(0.5)));
      parameter(module, "w2", 4, 8, 1, 1);
      parameter(module, "norm", 4);
      module.register_module("head", linear(4, 2));
      module.define(
          "def forward(self, x: Tensor) -> Tensor:\n"
              + "    y = torch.conv2d(x, self.w1, self.b1, [1, 1], [1, 1])\n"
              + "    y = torch.batch_norm(y, self.gamma, self.beta, self.mean, self.variance,"
              + " self.training, 0.1, 1e-5, True)\n"
              + "    y = torch.max_pool2d(torch.leaky_relu(y, 0.1), [2, 2])\n"
              + "    z = torch.conv2d(y, self.w2)\n"
              + "    z = torch.cat([z, torch.silu(z) - 0.5 * z], 1)\n"
              + "    z = torch.avg_pool2d(z, [3, 3], [2, 2], [1, 1])\n"
              + "    z = torch.hardtanh(z, -1.5, 1.5)\n"
              + "    a = torch.flatten(torch.adaptive_avg_pool2d(z, [1, 1]), 1)\n"
              + "    b = torch.mean(z, [2, 3])\n"
              + "    c = torch.softmax((a + b).reshape([x.size(0), 2, 4]).transpose(1, 2), -1)\n"
              + "    c = torch.layer_norm(c.sum([-1]), [4], self.norm)\n"
              + "    return self.head.forward(c)\n");
      file = saved(module);
    }
    OnnxModel graph = TorchScriptImport.read(file, List.of(3L, 8L, 8L));
    assertSame(file, graph, 3, 8, 8);
  }

  /** Calls of networks for pictures and of transformers, each beside a convolution of four channels. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "torch.clamp(y, -0.3, 0.4) + torch.clamp(y, min=0.1) * torch.clamp(y, max=0.2)",
        "torch.clamp(y, torch.tensor(-0.3), torch.tensor(0.4))",
        "torch.clamp_min(y, 0.1) - torch.clamp_max(y, 0.2)",
        "torch.hardsigmoid(y) * torch.hardswish(y)",
        "torch.selu(y) + torch.sin(y) * torch.cos(y)",
        "torch.rsqrt(torch.square(y) + 1) + torch.reciprocal(torch.pow(y, 2) + 2)",
        "torch.prelu(y, self.slope)",
        "torch.maximum(y, torch.minimum(x[:, 0:1], y * 2))",
        "torch.add(y, y, alpha=0.5) - torch.sub(y, x[:, :1], alpha=2)",
        "torch.constant_pad_nd(y, [1, 0, 2, 1], 0.25)",
        "torch.pad(y, [1, 1, 0, 2], 'reflect')",
        "torch.pad(y, [1, 1, 0, 2], 'replicate')",
        "torch.conv_transpose2d(y, self.turned, None, [2, 2], [1, 1], [1, 1], 2)",
        "torch.select(y, 1, 2) + y[:, -1]",
        "y[:, 1:, ::2, 1:-1]",
        "torch.squeeze(torch.mean(y, [2, 3], True), -1).squeeze(2)",
        "torch.chunk(y, 2, 1)[1] - torch.chunk(y, 2, 1)[0]",
        "torch.split_with_sizes(y, [1, 3], 1)[1]",
        "torch.stack([y, y * 2], 2)",
        "y.reshape([x.shape[0], len(x.shape), y.shape[-1] * 6])",
        "y.flatten(2).transpose(1, 2)",
        "self.token.expand([x.size(0), -1, -1]) + y.flatten(2).transpose(1, 2)[:, :1]",
        "y.view([x.size(0), 2, y.size(1) // 2, y.size(2), y.size(3)]).transpose(1, 2)"
            + ".reshape([x.size(0), -1, y.size(2) * y.size(3)])",
        "torch.scaled_dot_product_attention(y, y + 1, y * 2)",
        // Loops and branches over what the rank decides, as modules that were written from graphs
        // have them.
        "torch.mean(y, [i for i in range(2, y.dim())], True)",
        "y.reshape(y.size()[:2] + [y.size(2) * y.size(3)] + y.size()[4:])",
        "torch.layer_norm(y, y.size()[-1:], self.six)",
        "(torch.relu(y) if y.dim() == 4 else torch.logsumexp(y, [1]))",
        "torch.scaled_dot_product_attention(y, y, y, None, 0.0, False, scale=0.3)",
      })
  void aCallIsRead(String expression) throws Exception {
    Path file;
    try (PointerScope scope = new PointerScope()) {
      JitModule module = module("Net");
      parameter(module, "w", 4, 2, 1, 1);
      parameter(module, "slope", 4);
      parameter(module, "turned", 4, 3, 3, 3);
      parameter(module, "token", 1, 1, 4);
      parameter(module, "six", 6);
      module.define(
          "def forward(self, x: Tensor) -> Tensor:\n"
              + "    y = torch.conv2d(x, self.w)\n"
              + "    return "
              + expression
              + "\n");
      file = saved(module);
    }
    assertSame(file, TorchScriptImport.read(file, List.of(2L, 6L, 6L)), 2, 6, 6);
  }

  /** What {@link GraphScript} writes is read again. */
  @Test
  void aWrittenNetworkIsRead() throws Exception {
    Path file = folder.resolve("written.pt");
    GraphScript.write(OnnxModel.of(SmallModels.cnn(), "cnn"), file);
    assertSame(file, TorchScriptImport.read(file, List.of(3L, 16L, 16L)), 3, 16, 16);
  }

  private void refused(List<Long> example, String source, String... parts) {
    Path file;
    try (PointerScope scope = new PointerScope()) {
      JitModule module = module("Net");
      parameter(module, "w", 4, 4);
      module.define(source);
      file = saved(module);
    }
    String message =
        assertThrows(InputException.class, () -> TorchScriptImport.read(file, example))
            .getMessage();
    assertTrue(message.contains(file.toString()), message);
    for (String part : parts) {
      assertTrue(message.contains(part), part + " is not in: " + message);
    }
  }

  @Test
  void whatIsNoGraphIsRefused() {
    List<Long> four = List.of(4L);
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    y = torch.cumsum(torch.linear(x, self.w), 0)\n"
            + "    if bool(y.sum() > 0):\n"
            + "        y = torch.erfinv(y)\n"
            + "    return y\n",
        "aten::cumsum",
        "ONNX");
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    y = torch.linear(x, self.w)\n"
            + "    if x.size(0) > 2:\n"
            + "        y = torch.relu(y)\n"
            + "    return y\n",
        "aten::gt",
        "an integer that is computed");
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    y = torch.linear(x, self.w)\n"
            + "    for i in range(x.size(0)):\n"
            + "        y = torch.relu(y)\n"
            + "    return y\n",
        "prim::Loop",
        "a number of rounds that is computed");
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    y = torch.linear(x, self.w)\n"
            + "    for i in range(x.dim() * 100000):\n"
            + "        y = torch.relu(y)\n"
            + "    return y\n",
        "more than 10000 rounds");
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    axes = [1]\n"
            + "    for i in range(x.dim() * 20):\n"
            + "        axes = axes + axes\n"
            + "    return torch.linear(x, self.w).sum(axes[0])\n",
        "a list of more than 1000");
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    y = torch.linear(x, self.w)\n"
            + "    for i in range(0, 4, x.dim() - 2):\n"
            + "        y = torch.relu(y)\n"
            + "    return y\n",
        "a step of 0");
    refused(
        four,
        "def forward(self, x: Tensor, y: Tensor) -> Tensor:\n    return torch.linear(x, self.w)\n",
        "labelled examples have one");
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    return torch.relu(torch.linear(x, self.w)) + torch.dropout(x, 0.5, True)\n",
        "aten::dropout",
        "training");
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    return torch.logsumexp(torch.linear(x, self.w), [1])\n",
        "aten::logsumexp");
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    return torch.linear(x, self.w.sum([0])) + self.w\n",
        "aten::linear",
        "no matrix");
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    m = torch.mean(x, [0])\n"
            + "    y = torch.linear(x, self.w)\n"
            + "    return torch.batch_norm(y, None, None, m, m, False, 0.1, 1e-5, False)\n",
        "statistics that are computed");
    // What works in place on a value that is read again is another value in a graph.
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    y = torch.linear(x, self.w)\n"
            + "    z = y.view([-1, 4])\n"
            + "    y.add_(1)\n"
            + "    return z * 1\n",
        "something else than the module");
    // A size that a tracer has written down.
    refused(
        four,
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    return torch.linear(x, self.w).view([2, 4])\n",
        "failed in forward",
        "shape '[2, 4]' is invalid");
    refused(
        List.of(5L),
        "def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.w)\n",
        "failed in forward",
        "2x5 and 4x4");
  }
}
