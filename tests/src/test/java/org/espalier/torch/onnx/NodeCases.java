package org.espalier.torch.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OrtException;
import com.google.protobuf.ByteString;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.JitModule;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.TorchDevice;

/** Models of one node whose outputs are compared with those of ONNX Runtime, and of the same in TorchScript. */
final class NodeCases {
  private NodeCases() {}

  /** What did not agree since the list was emptied. */
  static final List<String> PROBLEMS = new ArrayList<>();

  static AttributeProto integer(String name, long value) {
    return AttributeProto.newBuilder()
        .setName(name)
        .setType(AttributeProto.AttributeType.INT)
        .setI(value)
        .build();
  }

  static AttributeProto integers(String name, long... values) {
    AttributeProto.Builder b =
        AttributeProto.newBuilder().setName(name).setType(AttributeProto.AttributeType.INTS);
    for (long v : values) {
      b.addInts(v);
    }
    return b.build();
  }

  static AttributeProto text(String name, String value) {
    return AttributeProto.newBuilder()
        .setName(name)
        .setType(AttributeProto.AttributeType.STRING)
        .setS(ByteString.copyFromUtf8(value))
        .build();
  }

  static NodeProto.Builder node(String op, AttributeProto... attributes) {
    return NodeProto.newBuilder().setOpType(op).addAllAttribute(List.of(attributes));
  }

  /** A node of an operator of ONNX Runtime's own. */
  static NodeProto.Builder runtime(String op, AttributeProto... attributes) {
    return node(op, attributes).setDomain("com.microsoft");
  }

  static Tensor floats(long... shape) {
    return torch.randn(shape);
  }

  static Tensor longs(long... values) {
    return AbstractTensor.create(values, values.length);
  }

  static Tensor ints(int... values) {
    return AbstractTensor.create(values, values.length);
  }

  static Tensor bools(long... shape) {
    return torch.randn(shape).gt(new Scalar(0));
  }

  /**
   * A model of a node.
   *
   * @param outputs how many follow those that the node names already
   * @param inputs null where one is absent
   */
  static OnnxModel model(int opset, NodeProto.Builder node, int outputs, Tensor... inputs) {
    GraphProto.Builder g = GraphProto.newBuilder().setName("case");
    for (int i = 0; i < inputs.length; i++) {
      if (inputs[i] == null) {
        node.addInput("");
        continue;
      }
      node.addInput("i" + i);
      TypeProto.Builder type = TypeProto.newBuilder();
      type.getTensorTypeBuilder().setElemType(onnx(ElementTypes.of(inputs[i])).getNumber());
      type.getTensorTypeBuilder().getShapeBuilder();
      for (long size : inputs[i].shape()) {
        type.getTensorTypeBuilder().getShapeBuilder().addDimBuilder().setDimValue(size);
      }
      g.addInput(ValueInfoProto.newBuilder().setName("i" + i).setType(type));
    }
    for (int i = 0; i < outputs; i++) {
      node.addOutput("o" + i);
    }
    for (String output : node.getOutputList()) {
      if (!output.isEmpty()) {
        g.addOutput(ValueInfoProto.newBuilder().setName(output));
      }
    }
    g.addNode(node);
    ModelProto.Builder model =
        ModelProto.newBuilder()
            .setIrVersion(10)
            .addOpsetImport(OperatorSetIdProto.newBuilder().setVersion(opset))
            .setGraph(g);
    if (!node.getDomain().isEmpty()) {
      model.addOpsetImport(
          OperatorSetIdProto.newBuilder().setDomain(node.getDomain()).setVersion(1));
    }
    return OnnxModel.of(model.build(), describe(node, opset, inputs));
  }

  /** The inputs by the names that they have in {@link #model}. */
  static Map<String, Tensor> given(Tensor... inputs) {
    Map<String, Tensor> given = new LinkedHashMap<>();
    for (int i = 0; i < inputs.length; i++) {
      if (inputs[i] != null) {
        given.put("i" + i, inputs[i]);
      }
    }
    return given;
  }

  private static String describe(NodeProto.Builder node, int opset, Tensor... inputs) {
    StringBuilder text = new StringBuilder(node.getOpType() + " of operator set " + opset);
    for (AttributeProto a : node.getAttributeList()) {
      text.append(' ').append(a.getName()).append('=');
      switch (a.getType()) {
        case INT -> text.append(a.getI());
        case FLOAT -> text.append(a.getF());
        case INTS -> text.append(a.getIntsList());
        case STRING -> text.append(a.getS().toStringUtf8());
        default -> text.append(a.getType());
      }
    }
    text.append(" of");
    for (Tensor t : inputs) {
      text.append(' ').append(t == null ? "-" : Arrays.toString(t.shape()));
    }
    return text.toString();
  }

  static DataType onnx(ScalarType type) {
    for (DataType t : DataType.values()) {
      if (ElementTypes.torch(t) == type) {
        return t;
      }
    }
    throw new IllegalArgumentException(type.toString());
  }

  static void same(int opset, NodeProto.Builder node, Tensor... inputs) {
    same(opset, node, 1, inputs);
  }

  static void same(int opset, NodeProto.Builder node, int outputs, Tensor... inputs) {
    OnnxModel model = model(opset, node, outputs, inputs);
    Map<String, Tensor> given = given(inputs);
    try (Program program = new Program(model, Map.of(), TorchDevice.CPU)) {
      Map<String, Tensor> expected = OnnxRuntime.run(model, given);
      for (int round = 0; round < 2; round++) {
        program
            .run(given, false)
            .forEach(
                (name, actual) -> {
                  String problem = OnnxConformanceTest.difference(actual, expected.get(name));
                  // Round-off where a value is nearly 0.
                  if (problem != null && !near(actual, expected.get(name))) {
                    PROBLEMS.add(model.name() + ", output " + name + ": " + problem);
                  }
                });
      }
      if (GraphScript.operators().contains(OperatorTable.name(node.build()))) {
        written(model, given, List.copyOf(program.run(given, false).values()));
      }
    } catch (OrtException | RuntimeException e) {
      PROBLEMS.add(model.name() + ": " + e.getMessage());
    }
  }

  /** The same in TorchScript. */
  static void written(OnnxModel model, Map<String, Tensor> given, List<Tensor> expected) {
    JitModule module = GraphScript.module(model);
    for (int round = 0; round < 3; round++) {
      List<Tensor> actual = GraphScriptConformanceTest.run(module, given.values(), expected.size());
      for (int i = 0; i < expected.size(); i++) {
        String problem =
            GraphScriptConformanceTest.difference(actual.get(i), expected.get(i), new double[1]);
        if (problem != null) {
          PROBLEMS.add(model.name() + " in TorchScript, round " + round + ": " + problem);
        }
      }
    }
  }

  static boolean near(Tensor a, Tensor b) {
    return Arrays.equals(a.shape(), b.shape())
        && ElementTypes.of(a) == ScalarType.Float
        && ElementTypes.of(b) == ScalarType.Float
        && torch.allclose(a, b, 1e-4, 1e-5, false);
  }

  /** Σ of all float outputs, each times a number of its own. */
  private static Tensor total(Program program, Map<String, Tensor> inputs) {
    Tensor sum = torch.zeros(1);
    for (Tensor output : program.run(inputs, true).values()) {
      if (output.is_floating_point()) {
        Tensor factors = torch.arange(new Scalar(output.numel())).mul(new Scalar(0.7)).sin();
        sum = sum.add(output.reshape(-1).mul(factors).sum());
      }
    }
    return sum;
  }

  /** Whether the gradients of all float inputs are the slopes along a random direction. */
  static void slopes(int opset, NodeProto.Builder node, int outputs, Tensor... inputs) {
    OnnxModel model = model(opset, node, outputs, inputs);
    Map<String, Tensor> given = given(inputs);
    try (Program program = new Program(model, Map.of(), TorchDevice.CPU)) {
      Map<String, Tensor> leaves = new LinkedHashMap<>(given);
      leaves.replaceAll((name, t) -> t.is_floating_point() ? t.clone().requires_grad_(true) : t);
      total(program, leaves).backward();
      double expected = 0;
      Map<String, Tensor> above = new LinkedHashMap<>(given);
      Map<String, Tensor> below = new LinkedHashMap<>(given);
      double step = 2e-3;
      for (Map.Entry<String, Tensor> e : leaves.entrySet()) {
        if (e.getValue().is_floating_point() && e.getValue().numel() > 0) {
          Tensor direction = torch.randn(e.getValue().shape());
          expected += e.getValue().grad().mul(direction).sum().item_double();
          Tensor move = direction.mul(new Scalar(step));
          above.put(e.getKey(), given.get(e.getKey()).add(move));
          below.put(e.getKey(), given.get(e.getKey()).sub(move));
        }
      }
      double high = total(program, above).item_double();
      double slope = (high - total(program, below).item_double()) / (2 * step);
      assertEquals(slope, expected, 0.01 * Math.abs(slope) + 0.02, model.name());
    }
  }
}
