package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;

/** Which outputs of a model count. */
class AnswersTest {
  private final GraphProto.Builder graph =
      GraphProto.newBuilder().setName("answers").addInput(value("x", DataType.FLOAT, -1, 4));

  private AnswersTest with(String operator, String output, String... inputs) {
    graph.addNode(node(operator, "", List.of(inputs), output));
    return this;
  }

  private AnswersTest giving(String... outputs) {
    for (String output : outputs) {
      graph.addOutput(value(output, DataType.FLOAT, -1, 4));
    }
    return this;
  }

  private List<String> answers() {
    return List.copyOf(Answers.of(OnnxModel.of(SmallModels.model(13, graph), "answers")));
  }

  /** As in U²-Net's kind: deep features make fine ones, and a mask comes of each. */
  @Test
  void featuresThatMasksAreMadeOfAreNone() {
    with("Relu", "deep", "x").with("Add", "fine", "x", "deep");
    with("Sigmoid", "mask", "fine").with("Sigmoid", "side", "deep");
    giving("mask", "side", "fine", "deep");
    assertEquals(List.of("mask", "side"), answers());
  }

  /** As in models of float16 whose outputs are float32. */
  @Test
  void featuresInAnotherFormAreFeatures() {
    with("Relu", "deep", "x").with("Sigmoid", "fine", "deep");
    with("Identity", "mask", "fine").with("Transpose", "turned", "fine");
    with("Identity", "features", "deep");
    giving("mask", "turned", "features");
    assertEquals(List.of("mask", "turned"), answers());
  }

  /** As in BERT, whose pooler reads the states that come first. */
  @Test
  void theFirstIsOneWhateverIsMadeOfIt() {
    with("Relu", "states", "x").with("Tanh", "pooled", "states").with("Exp", "more", "pooled");
    giving("states", "pooled", "more");
    assertEquals(List.of("states", "more"), answers());
  }

  @Test
  void theSizeOfAnOutputIsNotWhatIsInIt() {
    with("Relu", "scores", "x").with("Relu", "boxes", "x");
    with("Shape", "size", "boxes").with("Expand", "wide", "x", "size");
    giving("scores", "boxes", "wide");
    assertEquals(List.of("scores", "boxes", "wide"), answers());
  }

  @Test
  void cachesAreAnswersWhereNothingElseIs() {
    with("Relu", "present.0.key", "x").with("Relu", "logits", "x");
    giving("present.0.key", "logits");
    assertEquals(List.of("logits"), answers());
    graph.removeOutput(1);
    assertEquals(List.of("present.0.key"), answers());
  }

  /** A class that is made of scores does not make them inner: it is no number that could be compared. */
  @Test
  void onlyFloatsAreCompared() {
    with("Relu", "boxes", "x").with("Sigmoid", "scores", "x").with("ArgMax", "class", "scores");
    graph.addOutput(value("class", DataType.INT64, -1, 1));
    giving("boxes", "scores");
    assertEquals(List.of("boxes", "scores"), answers());
    graph.clearOutput().addOutput(value("class", DataType.INT64, -1, 1));
    assertEquals(List.of(), answers());
  }
}
