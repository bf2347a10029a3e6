package org.espalier.torch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.JitModule;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.QualifiedName;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.api.io.TempDir;

class TorchScriptModelTest {
  @TempDir Path folder;

  @BeforeEach
  void load() {
    Libtorch.load();
    torch.manual_seed(3);
  }

  /** x [n, 4] through two layers: [n, 2]. */
  private static JitModule mlp() {
    JitModule module = new JitModule(new QualifiedName("mlp"));
    module.register_parameter("w1", leaf(torch.randn(8, 4)), false);
    module.register_parameter("b1", leaf(torch.zeros(8)), false);
    module.register_parameter("w2", leaf(torch.randn(2, 8)), false);
    module.define(
        "def forward(self, x: Tensor) -> Tensor:\n"
            + "    return torch.linear(torch.relu(torch.linear(x, self.w1, self.b1)), self.w2)\n");
    return module;
  }

  private static Tensor leaf(Tensor values) {
    return values.requires_grad_(true);
  }

  private Path saved(JitModule module) {
    Path file = folder.resolve("module.pt");
    module.save(file.toString());
    return file;
  }

  @Test
  void aModuleIsLoadedTrainedAndSaved() {
    Path file;
    try (PointerScope scope = new PointerScope()) {
      file = saved(mlp());
    }
    Path trained = folder.resolve("trained.pt");
    float last = Float.NaN;
    try (TorchScriptModel model = TorchScriptModel.read(file)) {
      assertEquals(List.of("x"), model.inputNames());
      assertEquals(List.of("output"), model.outputNames());
      assertEquals(
          List.of("w1", "b1", "w2"), model.parameters().stream().map(Parameter::name).toList());
      model.train(true);
      assertTrue(model.isTraining());
      float first = Float.NaN;
      for (int i = 0; i < 50; i++) {
        try (PointerScope scope = new PointerScope()) {
          last = step(model);
          first = i == 0 ? last : first;
        }
      }
      assertTrue(last < 0.1 * first, first + " became " + last);
      model.train(false);
      assertFalse(model.isTraining());
      model.save(trained);
    }
    try (PointerScope scope = new PointerScope();
        TorchScriptModel model = TorchScriptModel.read(trained)) {
      float loss = loss(model).item_float();
      assertTrue(loss <= last, loss + " after " + last);
    }
  }

  private static Tensor loss(TrainableModel model) {
    torch.manual_seed(1);
    Tensor x = torch.randn(32, 4);
    Tensor y = torch.stack(new TensorVector(x.sum(1), x.select(1, 0)), 1);
    Tensor difference = model.forward(Map.of("x", x)).get("output").sub(y);
    return difference.mul(difference).mean();
  }

  private static float step(TrainableModel model) {
    Tensor loss = loss(model);
    loss.backward();
    try (NoGradGuard guard = new NoGradGuard()) {
      for (Parameter p : model.parameters()) {
        // The view proves that the parameter can reach a kernel.
        assertEquals(p.tensor().numel(), TensorView.of(p.tensor()).elements());
        p.tensor().sub_(p.tensor().grad().mul(new Scalar(0.05)));
        p.tensor().mutable_grad().zero_();
      }
    }
    return loss.item_float();
  }

  @Test
  void aClosedModelIsNotTouched() {
    try (PointerScope scope = new PointerScope()) {
      TorchScriptModel model = TorchScriptModel.read(saved(mlp()));
      model.close();
      model.close();
      for (Executable call :
          new Executable[] {
            () -> model.forward(Map.of(model.inputNames().get(0), torch.ones(2, 4))),
            () -> model.save(folder.resolve("closed.pt"))
          }) {
        String said = assertThrows(IllegalStateException.class, call).getMessage();
        assertEquals("the model is closed", said);
      }
    }
  }

  /** A limit of the shell on the size of files stands for a full disk, on which libtorch's writer ends the process. */
  @Test
  void aFullDiskIsAnError() throws Exception {
    Path file;
    try (PointerScope scope = new PointerScope()) {
      file = saved(mlp());
    }
    Path said = folder.resolve("said");
    Process process =
        new ProcessBuilder(
                "bash",
                "-c",
                "ulimit -f 4 && exec \"$@\"",
                "bash",
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-XX:TieredStopAtLevel=1",
                "-XX:-UsePerfData",
                "-XX:-CreateCoredumpOnCrash",
                "-cp",
                System.getProperty("java.class.path"),
                Saver.class.getName(),
                file.toString(),
                folder.toString())
            .redirectErrorStream(true)
            .redirectOutput(ProcessBuilder.Redirect.to(said.toFile()))
            .start();
    int code = process.waitFor();
    String text = Files.readString(said);
    assertEquals(0, code, text);
    assertTrue(
        text.contains("cannot write " + folder.resolve("module") + ": File too large"), text);
    assertTrue(
        text.contains("cannot write " + folder.resolve("script") + ": File too large"), text);
    try (var files = Files.list(folder)) {
      assertEquals(
          List.of("module.pt", "said"), files.map(f -> "" + f.getFileName()).sorted().toList());
    }
  }

  /** Saves models where files can have no more than 4 KiB. */
  static final class Saver {
    private Saver() {}

    public static void main(String[] args) {
      Path folder = Path.of(args[1]);
      TorchScriptModel script = TorchScriptModel.read(Path.of(args[0]));
      Module module = new Module("wide");
      module.register_parameter("w", leaf(torch.zeros(64, 64)), true);
      ModuleModel java =
          new ModuleModel("wide", module, List.of("x"), List.of("y"), inputs -> inputs);
      for (TrainableModel model : List.of(script, java)) {
        try {
          model.save(folder.resolve(model == script ? "script" : "module"));
        } catch (InputException e) {
          System.out.println(e.getMessage());
        }
      }
    }
  }

  @Test
  void aFrozenModuleIsRefused() {
    Path file;
    try (PointerScope scope = new PointerScope()) {
      JitModule module = mlp();
      module.eval();
      file = saved(torch.freeze(module));
    }
    refused("frozen", file);
  }

  @Test
  void whatCannotBeTrainedIsRefused() throws IOException {
    Path text = folder.resolve("text.pt");
    Files.writeString(text, "no module");
    refused("not a TorchScript module", text);
    refused("not a file", folder.resolve("missing.pt"));
    try (PointerScope scope = new PointerScope()) {
      JitModule half = new JitModule(new QualifiedName("half"));
      half.register_parameter("w", leaf(torch.randn(4).to(ScalarType.BFloat16)), false);
      half.define("def forward(self, x: Tensor) -> Tensor:\n    return x * self.w\n");
      refused("w is BFloat16", saved(half));
      JitModule number = new JitModule(new QualifiedName("number"));
      number.register_parameter("w", leaf(torch.randn(4)), false);
      number.define("def forward(self, x: int) -> Tensor:\n    return self.w * x\n");
      refused("takes x of type int", saved(number));
      JitModule list = new JitModule(new QualifiedName("list"));
      list.register_parameter("w", leaf(torch.randn(4)), false);
      list.define("def forward(self, x: Tensor) -> List[Tensor]:\n    return [self.w * x]\n");
      refused("returns", saved(list));
    }
  }

  @Test
  void aTupleHasNumberedOutputsAndErrorsNameTheModel() {
    try (PointerScope scope = new PointerScope()) {
      JitModule module = new JitModule(new QualifiedName("two"));
      module.register_parameter("w", leaf(torch.randn(4)), false);
      module.define(
          "def forward(self, x: Tensor, y: Tensor, z: int = 3) -> Tuple[Tensor, Tensor]:\n"
              + "    return x * self.w, y + z\n");
      try (TorchScriptModel model = new TorchScriptModel("two", module)) {
        assertEquals(List.of("x", "y"), model.inputNames());
        assertEquals(List.of("output_0", "output_1"), model.outputNames());
        Map<String, Tensor> outputs = model.forward(Map.of("x", torch.ones(4), "y", torch.ones(2)));
        assertEquals(4f, outputs.get("output_1").mean().item_float());
        InputException missing =
            assertThrows(InputException.class, () -> model.forward(Map.of("x", torch.ones(4))));
        assertTrue(missing.getMessage().contains("needs the input y"), missing.getMessage());
        InputException shape =
            assertThrows(
                InputException.class,
                () -> model.forward(Map.of("x", torch.ones(3), "y", torch.ones(2))));
        assertTrue(shape.getMessage().contains("The size of tensor a"), shape.getMessage());
        assertThrows(
            UnsupportedOperationException.class, () -> model.transformInputs((n, i) -> null));
      }
    }
  }

  private static void refused(String part, Path file) {
    String message =
        assertThrows(InputException.class, () -> TorchScriptModel.read(file)).getMessage();
    assertTrue(message.contains(part), message);
    assertTrue(message.contains(file.toString()), message);
  }
}
