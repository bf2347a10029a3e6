package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.function.Function;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Operators that make tensors from sizes, ranges and windows. */
final class GenerationOperators {
  private GenerationOperators() {}

  static void add(Sink table) {
    table.one("Constant", 1, GenerationOperators::constant);
    table.add(
        OperatorTable.single("ConstantOfShape", 9, GenerationOperators::constantOfShape)
            .reading(0));
    table.add(OperatorTable.single("Range", 11, n -> GenerationOperators::range).reading(0, 1, 2));
    table.one("EyeLike", 9, GenerationOperators::eyeLike);
    // Cosine windows: a0 - a1·cos(2πi/N) + a2·cos(4πi/N).
    table.add(window("HannWindow", 0.5, 0.5, 0));
    table.add(window("HammingWindow", 25. / 46, 21. / 46, 0));
    table.add(window("BlackmanWindow", 0.42, 0.5, 0.08));
  }

  private static Function<Inputs, Tensor> constant(Node n) {
    Function<Inputs, Tensor> f = null;
    if (n.hasAttribute("value")) {
      OnnxInitializer value = OnnxInitializer.ofMessage(n.tensor("value"));
      ElementTypes.torch(value.type(), n.where());
      f = in -> in.place(ElementTypes.tensor(value, n.where()));
    } else if (n.hasAttribute("value_int")) {
      long value = n.integer("value_int", 0);
      f = in -> in.tensor(new long[] {value}, new long[0]);
    } else if (n.hasAttribute("value_ints")) {
      long[] values = n.integers("value_ints", null);
      f = in -> in.tensor(values, values.length);
    } else if (n.hasAttribute("value_float")) {
      float value = (float) n.real("value_float", 0);
      f = in -> in.place(AbstractTensor.create(new float[] {value}, new long[0]));
    } else if (n.hasAttribute("value_floats")) {
      float[] values = n.reals("value_floats");
      f = in -> in.place(AbstractTensor.create(values, values.length));
    }
    n.refuseUnread();
    if (f == null) {
      throw n.wrong("a Constant without a value");
    }
    return f;
  }

  private static Function<Inputs, Tensor> constantOfShape(Node n) {
    TensorProto value = n.tensor("value");
    if (value == null) {
      return in -> in.place(torch.zeros(in.longs(0), new TensorOptions(ScalarType.Float)));
    }
    OnnxInitializer filling = OnnxInitializer.ofMessage(value);
    if (filling.elements() != 1) {
      throw n.wrong("the value must have one element but has " + filling.elements());
    }
    ElementTypes.torch(filling.type(), n.where());
    return in -> {
      Tensor one = in.place(ElementTypes.tensor(filling, n.where())).reshape(new long[0]);
      // A copy, because some kernels of libtorch are slow on strides of 0.
      return one.expand(in.longs(0)).contiguous();
    };
  }

  private static Tensor range(Inputs in) {
    ScalarType type = in.type(0);
    TensorOptions options = new TensorOptions(type);
    if (ElementTypes.isInteger(type)) {
      long start = in.longs(0)[0];
      long limit = in.longs(1)[0];
      long delta = in.longs(2)[0];
      if (delta == 0) {
        throw new InputException("the step is 0");
      }
      long count = Math.max(0, Math.floorDiv(limit - start + delta - Long.signum(delta), delta));
      Tensor steps = torch.arange(new Scalar(count), options);
      return in.place(steps.mul(new Scalar(delta)).add(new Scalar(start)));
    }
    double start = in.doubles(0)[0];
    double delta = in.doubles(2)[0];
    long count = (long) Math.max(0, Math.ceil((in.doubles(1)[0] - start) / delta));
    Tensor steps = torch.arange(new Scalar(count), options);
    return in.place(steps.mul(new Scalar(delta)).add(new Scalar(start)));
  }

  private static Function<Inputs, Tensor> eyeLike(Node n) {
    long k = n.integer("k", 0);
    ScalarType type =
        n.hasAttribute("dtype")
            ? ElementTypes.torch(DataType.forNumber((int) n.integer("dtype", 0)), n.where())
            : null;
    return in -> {
      Tensor x = in.get(0);
      Tensor ones = torch.ones(x.shape(), new TensorOptions(ScalarType.Float)).triu(k).tril(k);
      return in.place(ones.to(type == null ? ElementTypes.of(x) : type));
    };
  }

  private static Operator window(String name, double a0, double a1, double a2) {
    return OperatorTable.single(
            name,
            17,
            n -> {
              boolean periodic = n.flag("periodic", true);
              ScalarType type =
                  ElementTypes.torch(
                      DataType.forNumber((int) n.integer("output_datatype", 1)), n.where());
              return in -> {
                int size = Math.toIntExact(in.longs(0)[0]);
                double[] values = new double[size];
                double turn = 2 * Math.PI / (periodic ? size : size - 1);
                for (int i = 0; i < size; i++) {
                  values[i] = a0 - a1 * Math.cos(i * turn) + a2 * Math.cos(2 * i * turn);
                }
                return in.tensor(values, size).to(type);
              };
            })
        .reading(0);
  }
}
