package org.espalier.torch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.EmbeddingImpl;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.torch.Parameter.Kind;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ModuleModelTest {
  @TempDir Path folder;

  @BeforeEach
  void load() {
    Libtorch.load();
    torch.manual_seed(4);
  }

  private static ModuleModel classifier() {
    Module module = new Module("classifier");
    EmbeddingImpl table = module.register_module("table", new EmbeddingImpl(20, 6));
    LinearImpl head = module.register_module("head", new LinearImpl(6, 3));
    return new ModuleModel(
        "classifier",
        module,
        List.of("ids"),
        List.of("logits"),
        inputs -> List.of(head.forward(table.forward(inputs.get(0)).mean(1))));
  }

  @Test
  void parametersKnowTheirKind() {
    try (ModuleModel model = classifier()) {
      assertEquals(
          List.of("table.weight", "head.weight", "head.bias"),
          model.parameters().stream().map(Parameter::name).toList());
      assertEquals(
          List.of(Kind.EMBEDDING, Kind.LINEAR, Kind.OTHER),
          model.parameters().stream().map(Parameter::kind).toList());
      Parameter head = model.parameters().get(1);
      assertEquals(0, head.outputAxis());
      assertEquals(1, head.reductionAxis());
      assertEquals(List.of("head"), head.nodes());
      assertTrue(head.isWeight());
    }
  }

  @Test
  void trainingIsSavedAndLoaded() {
    Path file = folder.resolve("classifier.pt");
    try (ModuleModel model = classifier();
        ModuleModel other = classifier()) {
      float[] losses = new float[60];
      for (int i = 0; i < losses.length; i++) {
        try (PointerScope scope = new PointerScope()) {
          Tensor loss = loss(model);
          loss.backward();
          losses[i] = loss.item_float();
          try (NoGradGuard guard = new NoGradGuard()) {
            for (Parameter p : model.parameters()) {
              p.tensor().sub_(p.tensor().grad());
              p.tensor().mutable_grad().zero_();
            }
          }
        }
      }
      assertTrue(losses[59] < 0.5 * losses[0], losses[0] + " became " + losses[59]);
      model.save(file);
      try (PointerScope scope = new PointerScope()) {
        float before = loss(other).item_float();
        other.load(file);
        float after = loss(other).item_float();
        assertTrue(after < before);
        assertEquals(loss(model).item_float(), after);
      }
    }
  }

  /** An optimizer over views of the parameters goes on after a load. */
  @Test
  void whatIsLoadedIsInTheMemoryThatParametersHad() {
    Path file = folder.resolve("classifier.pt");
    try (PointerScope scope = new PointerScope();
        ModuleModel saved = classifier();
        ModuleModel model = classifier()) {
      Parameter first = model.parameters().get(0);
      org.espalier.device.Tensor view = TensorView.of(first.tensor());
      saved.save(file);
      model.load(file);
      assertEquals(view.address(), TensorView.of(first.tensor()).address());
      assertTrue(first.tensor().equal(saved.parameters().get(0).tensor()));
      assertTrue(first.tensor().requires_grad());
    }
  }

  @Test
  void parametersOfAnotherShapeChangeNothing() {
    Path file = folder.resolve("wide.pt");
    try (PointerScope scope = new PointerScope();
        ModuleModel wide = linear(4);
        ModuleModel model = linear(3)) {
      wide.save(file);
      Tensor before = model.parameters().get(0).tensor().detach().clone();
      refused(
          "does not hold linear: weight is [2, 4] there and [2, 3] here", () -> model.load(file));
      assertTrue(model.parameters().get(0).tensor().equal(before));
      assertEquals(2, model.forward(Map.of("x", torch.ones(1, 3))).get("y").size(1));
    }
  }

  private static ModuleModel linear(int features) {
    LinearImpl linear = new LinearImpl(features, 2);
    return new ModuleModel(
        "linear",
        linear,
        List.of("x"),
        List.of("y"),
        inputs -> List.of(linear.forward(inputs.get(0))));
  }

  private static Tensor loss(TrainableModel model) {
    torch.manual_seed(1);
    Tensor ids = torch.rand(16, 5).mul(new Scalar(20)).to(ScalarType.Long);
    Tensor labels = ids.select(1, 0).remainder(new Scalar(3));
    return torch.cross_entropy_loss(model.forward(Map.of("ids", ids)).get("logits"), labels);
  }

  @Test
  void errorsNameTheModel() {
    try (PointerScope scope = new PointerScope();
        ModuleModel model = classifier()) {
      refused("classifier needs the input ids", () -> model.forward(Map.of()));
      Tensor closed = torch.ones(1);
      closed.close();
      refused("the tensor of the input ids is closed", () -> model.forward(Map.of("ids", closed)));
      refused("classifier failed in forward", () -> model.forward(Map.of("ids", torch.ones(1))));
      refused("does not hold classifier", () -> model.load(folder.resolve("missing")));
      assertThrows(
          UnsupportedOperationException.class, () -> model.transformInputs((n, i) -> null));
      Module empty = new Module("empty");
      refused(
          "no parameter",
          () -> new ModuleModel("empty", empty, List.of(), List.of(), inputs -> inputs));
    }
  }

  @Test
  void aClosedModelIsNotTouched() {
    try (PointerScope scope = new PointerScope()) {
      ModuleModel model = classifier();
      model.close();
      assertThrows(IllegalStateException.class, () -> model.forward(Map.of("ids", torch.ones(1))));
      assertThrows(IllegalStateException.class, () -> model.save(folder.resolve("closed")));
      assertThrows(IllegalStateException.class, () -> model.load(folder.resolve("closed")));
      assertThrows(IllegalStateException.class, () -> model.train(true));
      assertThrows(IllegalStateException.class, model::isTraining);
    }
  }

  private static void refused(String part, Runnable call) {
    String message = assertThrows(InputException.class, call::run).getMessage();
    assertTrue(message.contains(part), message);
  }
}
