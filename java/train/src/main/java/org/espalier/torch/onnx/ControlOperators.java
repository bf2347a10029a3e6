package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.GraphProto;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Function;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Operators with graphs inside. */
final class ControlOperators {
  private ControlOperators() {}

  /**
   * @param blocks compiles a graph inside a node
   */
  static void add(Sink table, Function<GraphProto, Block> blocks) {
    table.add(OperatorTable.several("If", 1, n -> branch(n, blocks)).asOpaque());
    table.add(OperatorTable.several("Loop", 1, n -> loop(n, blocks)).asOpaque());
  }

  private static Kernel branch(Node n, Function<GraphProto, Block> blocks) {
    Block yes = blocks.apply(n.graph("then_branch"));
    Block no = blocks.apply(n.graph("else_branch"));
    return in -> (in.get(0).item_bool() ? yes : no).run();
  }

  private static Kernel loop(Node n, Function<GraphProto, Block> blocks) {
    Block body = blocks.apply(n.graph("body"));
    int carried = n.inputs() - 2;
    int scans = n.outputs() - carried;
    return in -> {
      long trips = in.has(0) ? in.get(0).item_long() : Long.MAX_VALUE;
      boolean more = !in.has(1) || in.get(1).item_bool();
      Tensor[] state = new Tensor[carried];
      for (int i = 0; i < carried; i++) {
        state[i] = in.get(2 + i);
      }
      List<List<Tensor>> scanned = new ArrayList<>();
      for (int i = 0; i < scans; i++) {
        scanned.add(new ArrayList<>());
      }
      for (long k = 0; k < trips && more; k++) {
        Tensor[] arguments = new Tensor[2 + carried];
        arguments[0] = in.tensor(new long[] {k}, new long[0]);
        arguments[1] = in.place(AbstractTensor.create(new boolean[] {true}, new long[0]));
        System.arraycopy(state, 0, arguments, 2, carried);
        Tensor[] results = body.run(arguments);
        more = results[0].item_bool();
        state = Arrays.copyOfRange(results, 1, 1 + carried);
        for (int i = 0; i < scans; i++) {
          scanned.get(i).add(results[1 + carried + i]);
        }
      }
      Tensor[] outputs = new Tensor[carried + scans];
      for (int i = 0; i < carried; i++) {
        outputs[i] = new Tensor(state[i]);
      }
      for (int i = 0; i < scans; i++) {
        outputs[carried + i] =
            scanned.get(i).isEmpty()
                ? torch.zeros(0)
                : torch.stack(new TensorVector(scanned.get(i).toArray(new Tensor[0])), 0);
      }
      return outputs;
    };
  }
}
