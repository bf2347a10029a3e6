package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.real;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OrtException;
import com.google.protobuf.ByteString;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.torch.Libtorch;
import org.espalier.torch.onnx.OnnxRuntime;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Nodes that hold weights beside what is computed with them, before and after they are written apart. */
class FusedNodesTest {
  @BeforeEach
  void load() {
    Libtorch.load();
    torch.manual_seed(6);
  }

  private static OnnxModel model(int opset, GraphProto.Builder graph) {
    ModelProto.Builder model = SmallModels.model(opset, graph).toBuilder();
    model.addOpsetImport(OperatorSetIdProto.newBuilder().setDomain("com.microsoft").setVersion(1));
    return OnnxModel.of(model.build(), "fused");
  }

  private static NodeProto runtime(
      String op, List<String> inputs, List<String> outputs, AttributeProto... attributes) {
    return node(op, op + "/" + outputs.get(0), inputs, outputs.get(0), attributes).toBuilder()
        .addAllOutput(outputs.subList(1, outputs.size()))
        .setDomain("com.microsoft")
        .build();
  }

  private static Set<String> operators(OnnxModel model) {
    Set<String> operators = new TreeSet<>();
    model.nodes().forEach(n -> operators.add(n.getOpType()));
    return operators;
  }

  /** What ONNX Runtime makes of a model must stay, apart from the order of sums. */
  private static OnnxModel split(OnnxModel model, Map<String, Tensor> inputs) throws OrtException {
    OnnxModel apart = model.copy();
    assertTrue(FusedNodes.split(apart).isPresent());
    Map<String, Tensor> expected = OnnxRuntime.run(model, inputs);
    Map<String, Tensor> actual = OnnxRuntime.run(apart, inputs);
    assertEquals(expected.keySet(), actual.keySet());
    expected.forEach(
        (name, t) -> assertTrue(torch.allclose(actual.get(name), t, 1e-4, 1e-5, false), name));
    return apart;
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void encodersGiveTheSame(boolean lengths) throws OrtException {
    OnnxModel model = OnnxModel.of(RuntimeModels.encoder(3, 30, 2, lengths), "encoder");
    try (PointerScope scope = new PointerScope()) {
      Tensor ids = AbstractTensor.create(new long[] {3, 4, 5, 29, 7, 8, 1, 0, 0, 0}, 2, 5);
      Tensor mask = AbstractTensor.create(new long[] {1, 1, 1, 1, 1, 1, 1, 0, 0, 0}, 2, 5);
      Tensor parts = AbstractTensor.create(new long[] {0, 0, 1, 1, 1, 0, 0, 0, 0, 0}, 2, 5);
      Map<String, Tensor> inputs =
          Map.of("input_ids", ids, "attention_mask", mask, "token_type_ids", parts);
      OnnxModel apart = split(model, inputs);
      assertTrue(operators(apart).contains("MultiHeadAttention"));
      assertTrue(!operators(apart).contains("Attention"));
      assertTrue(!operators(apart).contains("EmbedLayerNormalization"));
      Set<String> weights = new TreeSet<>();
      OnnxWeights.of(apart).forEach(w -> weights.add(w.name()));
      assertTrue(weights.contains("encoder.layer.1.attention.qkv.weight"), weights.toString());
      assertTrue(weights.contains("embeddings.word_embeddings.weight"), weights.toString());
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {12, 13})
  void attentionWithAPastAndWidthsOfItsOwn(int opset) throws OrtException {
    Random random = new Random(4);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(value("x", DataType.FLOAT, -1, -2, 12))
            .addInput(value("past", DataType.FLOAT, 2, -1, 3, -3, 8))
            .addInitializer(floats("w", random, 0.3f, 12, 72))
            .addInitializer(floats("b", random, 0.3f, 72))
            .addInitializer(floats("v", random, 0.3f, 12, 60))
            .addInitializer(floats("c", random, 0.3f, 60))
            .addNode(
                runtime(
                    "Attention",
                    List.of("x", "w", "b", "", "past"),
                    List.of("y", "present"),
                    attribute("num_heads", 3),
                    attribute("unidirectional", 1),
                    real("scale", 0.2f)))
            .addNode(
                runtime(
                    "Attention",
                    List.of("x", "v", "c"),
                    List.of("z"),
                    attribute("num_heads", 3),
                    list("qkv_hidden_sizes", 24, 24, 12)))
            .addOutput(value("y", DataType.FLOAT, -1, -2, 24))
            .addOutput(value("present", DataType.FLOAT, 2, -1, 3, -4, 8))
            .addOutput(value("z", DataType.FLOAT, -1, -2, 12));
    try (PointerScope scope = new PointerScope()) {
      OnnxModel apart =
          split(
              model(opset, g),
              Map.of("x", torch.randn(2, 3, 12), "past", torch.randn(2, 2, 3, 4, 8)));
      assertEquals(2, OnnxWeights.of(apart).size());
    }
  }

  /** The lengths of four texts, or the starts and ends of two. */
  @Test
  void attentionWithAMaskOfUnknownMeaningStaysWhole() {
    Random random = new Random(4);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(value("x", DataType.FLOAT, -1, -2, 12))
            .addInput(value("mask", DataType.INT32, -3))
            .addInitializer(floats("w", random, 0.3f, 12, 72))
            .addInitializer(floats("b", random, 0.3f, 72))
            .addNode(
                runtime(
                    "Attention",
                    List.of("x", "w", "b", "mask"),
                    List.of("y"),
                    attribute("num_heads", 3)))
            .addOutput(value("y", DataType.FLOAT, -1, -2, 24));
    OnnxModel model = model(13, g);
    assertTrue(FusedNodes.split(model).isEmpty());
    assertEquals(Set.of("Attention"), operators(model));
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void embeddingsWithoutParts(boolean positions) throws OrtException {
    Random random = new Random(5);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(value("ids", DataType.INT32, -1, -2))
            .addInput(value("places", DataType.INT32, -1, -2))
            .addInitializer(floats("words", random, 0.3f, 20, 8))
            .addInitializer(floats("where", random, 0.3f, 9, 8))
            .addInitializer(floats("scale", random, 1, 8))
            .addInitializer(floats("offset", random, 1, 8))
            .addNode(
                runtime(
                    "EmbedLayerNormalization",
                    List.of(
                        "ids",
                        "",
                        "words",
                        "where",
                        "",
                        "scale",
                        "offset",
                        "",
                        positions ? "places" : ""),
                    List.of("y", "", "sum"),
                    real("epsilon", 1e-5f)))
            .addOutput(value("y", DataType.FLOAT, -1, -2, 8))
            .addOutput(value("sum", DataType.FLOAT, -1, -2, 8));
    try (PointerScope scope = new PointerScope()) {
      split(
          model(13, g),
          Map.of(
              "ids", AbstractTensor.create(new int[] {3, 4, 19, 0}, 2, 2),
              "places", AbstractTensor.create(new int[] {8, 1, 2, 3}, 2, 2)));
    }
  }

  private static AttributeProto activation(String operator) {
    return AttributeProto.newBuilder()
        .setName("activation")
        .setType(AttributeProto.AttributeType.STRING)
        .setS(ByteString.copyFromUtf8(operator))
        .build();
  }

  private static AttributeProto parameters(float... values) {
    AttributeProto.Builder b =
        AttributeProto.newBuilder()
            .setName("activation_params")
            .setType(AttributeProto.AttributeType.FLOATS);
    for (float v : values) {
      b.addFloats(v);
    }
    return b.build();
  }

  @Test
  void productsAndConvolutionsWithTheirActivations() throws OrtException {
    Random random = new Random(6);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(value("x", DataType.FLOAT, -1, 12))
            .addInput(value("image", DataType.FLOAT, -1, 3, 5, 5))
            .addInitializer(floats("w", random, 0.3f, 8, 12))
            .addInitializer(floats("b", random, 0.3f, 8))
            .addInitializer(floats("k", random, 0.3f, 16, 3, 3, 3))
            .addInitializer(floats("c", random, 0.3f, 16))
            .addNode(
                runtime(
                    "FusedGemm",
                    List.of("x", "w", "b"),
                    List.of("y"),
                    attribute("transB", 1),
                    activation("LeakyRelu"),
                    real("activation_alpha", 0.2f)))
            .addNode(
                runtime(
                    "FusedGemm",
                    List.of("x", "w"),
                    List.of("t"),
                    attribute("transB", 1),
                    activation("Tanh")))
            .addNode(
                runtime(
                    "FusedConv",
                    List.of("image", "k", "c"),
                    List.of("z"),
                    list("pads", 1, 1, 1, 1),
                    activation("LeakyRelu"),
                    parameters(0.3f)))
            .addOutput(value("y", DataType.FLOAT, -1, 8))
            .addOutput(value("t", DataType.FLOAT, -1, 8))
            .addOutput(value("z", DataType.FLOAT, -1, 16, 5, 5));
    try (PointerScope scope = new PointerScope()) {
      OnnxModel apart =
          split(
              model(13, g),
              Map.of(
                  "x", torch.randn(2, 12),
                  "image", torch.randn(2, 3, 5, 5)));
      assertEquals(Set.of("Gemm", "LeakyRelu", "Tanh", "Conv"), operators(apart));
    }
  }

  @Test
  void productsWithAFactor() throws OrtException {
    Random random = new Random(7);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(value("x", DataType.FLOAT, -1, -2, 12))
            .addInitializer(floats("w", random, 0.3f, 12, 8))
            .addInitializer(floats("turned", random, 0.3f, 8, 12))
            .addNode(runtime("FusedMatMul", List.of("x", "w"), List.of("y"), real("alpha", 0.125f)))
            .addNode(
                runtime(
                    "FusedMatMul", List.of("x", "turned"), List.of("z"), attribute("transB", 1)))
            .addNode(
                runtime("FusedMatMul", List.of("y", "z"), List.of("s"), attribute("transB", 1)))
            .addOutput(value("y", DataType.FLOAT, -1, -2, 8))
            .addOutput(value("z", DataType.FLOAT, -1, -2, 8))
            .addOutput(value("s", DataType.FLOAT, -1, -2, -2));
    try (PointerScope scope = new PointerScope()) {
      OnnxModel apart = split(model(13, g), Map.of("x", torch.randn(2, 3, 12)));
      assertEquals(2, OnnxWeights.of(apart).size());
      assertEquals(Set.of("FusedMatMul", "MatMul", "Mul", "Transpose"), operators(apart));
    }
  }

  @Test
  void whatHoldsNoMatrixStays() {
    for (RuntimeModels.Form form : RuntimeModels.Form.values()) {
      OnnxModel model = OnnxModel.of(RuntimeModels.decoder(form, 1, 30, 1), "decoder");
      assertTrue(FusedNodes.split(model).isEmpty());
      // Cosines and sines are no weights.
      assertTrue(OnnxWeights.outOfReach(model).isEmpty());
    }
  }
}
