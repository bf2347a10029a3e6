package org.espalier.torch.onnx;

import java.util.Locale;
import java.util.function.Function;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.torch.onnx.OperatorTable.Sink;

/**
 * Recurrent layers, step by step: the products with the inputs of all steps are one product, each
 * step adds the product with the state. Equations and gate orders are those of the ONNX operator
 * specification.
 */
final class RecurrentOperators {
  private RecurrentOperators() {}

  static void add(Sink table) {
    table.add(OperatorTable.several("LSTM", 7, n -> layer(n, "LSTM", 4, 3)));
    table.add(OperatorTable.several("GRU", 7, n -> layer(n, "GRU", 3, 2)));
    table.add(OperatorTable.several("RNN", 7, n -> layer(n, "RNN", 1, 1)));
  }

  /** What one step makes of a state. */
  private interface Cell {
    /**
     * @param x [batch, gates · hidden], the product with this step's input, biases included
     * @param state h, and for LSTM c
     */
    Tensor[] step(Tensor x, Tensor[] state);
  }

  private static Kernel layer(Node n, String kind, int gates, int activations) {
    String direction = n.choice("direction", "forward", "forward", "reverse", "bidirectional");
    int directions = direction.equals("bidirectional") ? 2 : 1;
    long hidden = n.integer("hidden_size", 0);
    boolean batchFirst = n.opset() >= 14 && n.flag("layout", false);
    Function<Tensor, Tensor>[] f = activations(n, kind, activations, directions);
    boolean resetAfter = kind.equals("GRU") && n.flag("linear_before_reset", false);
    boolean coupled = kind.equals("LSTM") && n.flag("input_forget", false);
    return in -> {
      Tensor x = batchFirst ? in.get(0).transpose(0, 1) : in.get(0);
      long batch = x.size(1);
      Tensor lengths = in.has(4) ? in.get(4).to(ScalarType.Long) : null;
      Tensor[] outputs = new Tensor[directions];
      Tensor[] lastH = new Tensor[directions];
      Tensor[] lastC = new Tensor[directions];
      for (int d = 0; d < directions; d++) {
        boolean reverse = direction.equals("reverse") || d == 1;
        Tensor w = in.get(1).select(0, d);
        Tensor r = in.get(2).select(0, d);
        long size = hidden > 0 ? hidden : r.size(-1);
        Tensor bias = in.has(3) ? in.get(3).select(0, d) : null;
        Tensor wb = bias == null ? null : bias.narrow(0, 0, gates * size);
        Tensor rb = bias == null ? null : bias.narrow(0, gates * size, gates * size);
        Tensor peepholes = kind.equals("LSTM") && in.has(7) ? in.get(7).select(0, d) : null;
        Cell cell =
            switch (kind) {
              case "LSTM" -> lstm(r, rb, peepholes, size, f, d, coupled);
              case "GRU" -> gru(r, rb, size, f, d, resetAfter);
              default -> rnn(r, rb, f, d);
            };
        Tensor products = x.matmul(w.t());
        if (wb != null) {
          products = products.add(wb);
        }
        Tensor zero =
            in.place(torch.zeros(new long[] {batch, size}, new TensorOptions(ElementTypes.of(x))));
        Tensor[] state = {
          in.has(5) ? start(in.get(5), d, batchFirst) : zero,
          kind.equals("LSTM") ? (in.has(6) ? start(in.get(6), d, batchFirst) : zero) : null
        };
        outputs[d] = run(cell, products, state, lengths, zero, reverse);
        lastH[d] = state[0];
        lastC[d] = state[1];
      }
      // [steps, directions, batch, hidden], or [batch, steps, directions, hidden].
      Tensor y = torch.stack(new TensorVector(outputs), 1);
      return new Tensor[] {
        batchFirst ? y.permute(2, 0, 1, 3) : y,
        last(lastH, batchFirst),
        kind.equals("LSTM") ? last(lastC, batchFirst) : null
      };
    };
  }

  /**
   * Runs over a sequence.
   *
   * @param products [steps, batch, gates · hidden]
   * @param state the first one, which becomes the last one
   * @param lengths of the sequences; null where all have all steps
   * @param zero an output of zeros
   * @return the outputs [steps, batch, hidden]
   */
  private static Tensor run(
      Cell cell, Tensor products, Tensor[] state, Tensor lengths, Tensor zero, boolean reverse) {
    int steps = (int) products.size(0);
    Tensor[] sequence = new Tensor[steps];
    for (int k = 0; k < steps; k++) {
      int t = reverse ? steps - 1 - k : k;
      Tensor[] next = cell.step(products.select(0, t), state);
      Tensor output = next[0];
      if (lengths != null) {
        // Sequences that are over keep their state and put out zeros.
        Tensor alive = lengths.gt(new Scalar(t)).unsqueeze(-1);
        output = torch.where(alive, next[0], zero);
        for (int i = 0; i < next.length; i++) {
          next[i] = torch.where(alive, next[i], state[i]);
        }
      }
      System.arraycopy(next, 0, state, 0, next.length);
      sequence[t] = output;
    }
    return torch.stack(new TensorVector(sequence), 0);
  }

  private static Tensor start(Tensor states, int d, boolean batchFirst) {
    return states.select(batchFirst ? 1 : 0, d);
  }

  private static Tensor last(Tensor[] states, boolean batchFirst) {
    return torch.stack(new TensorVector(states), batchFirst ? 1 : 0);
  }

  private static Tensor product(Tensor h, Tensor r, Tensor bias) {
    Tensor p = h.matmul(r.t());
    return bias == null ? p : p.add(bias);
  }

  /** Gates in the order input, output, forget, cell; peepholes input, output, forget. */
  private static Cell lstm(
      Tensor r,
      Tensor rb,
      Tensor peepholes,
      long size,
      Function<Tensor, Tensor>[] f,
      int d,
      boolean coupled) {
    return (x, state) -> {
      Tensor all = x.add(product(state[0], r, rb));
      Tensor c = state[1];
      Tensor i = f[3 * d].apply(peep(all.narrow(1, 0, size), c, peepholes, 0, size));
      Tensor forget =
          coupled
              ? i.neg().add(new Scalar(1))
              : f[3 * d].apply(peep(all.narrow(1, 2 * size, size), c, peepholes, 2, size));
      Tensor next = forget.mul(c).add(i.mul(f[3 * d + 1].apply(all.narrow(1, 3 * size, size))));
      Tensor o = f[3 * d].apply(peep(all.narrow(1, size, size), next, peepholes, 1, size));
      return new Tensor[] {o.mul(f[3 * d + 2].apply(next)), next};
    };
  }

  private static Tensor peep(Tensor gate, Tensor c, Tensor peepholes, int which, long size) {
    return peepholes == null ? gate : gate.add(peepholes.narrow(0, which * size, size).mul(c));
  }

  /** Gates in the order update, reset, hidden. */
  private static Cell gru(
      Tensor r, Tensor rb, long size, Function<Tensor, Tensor>[] f, int d, boolean resetAfter) {
    Tensor gates = r.narrow(0, 0, 2 * size);
    Tensor gatesBias = rb == null ? null : rb.narrow(0, 0, 2 * size);
    Tensor last = r.narrow(0, 2 * size, size);
    Tensor lastBias = rb == null ? null : rb.narrow(0, 2 * size, size);
    return (x, state) -> {
      Tensor h = state[0];
      Tensor zr = f[2 * d].apply(x.narrow(1, 0, 2 * size).add(product(h, gates, gatesBias)));
      Tensor z = zr.narrow(1, 0, size);
      Tensor reset = zr.narrow(1, size, size);
      Tensor inner =
          resetAfter
              ? reset.mul(product(h, last, lastBias))
              : product(reset.mul(h), last, lastBias);
      Tensor candidate = f[2 * d + 1].apply(x.narrow(1, 2 * size, size).add(inner));
      // (1 - z)·candidate + z·h
      return new Tensor[] {candidate.add(z.mul(h.sub(candidate)))};
    };
  }

  private static Cell rnn(Tensor r, Tensor rb, Function<Tensor, Tensor>[] f, int d) {
    return (x, state) -> new Tensor[] {f[d].apply(x.add(product(state[0], r, rb)))};
  }

  @SuppressWarnings("unchecked")
  private static Function<Tensor, Tensor>[] activations(
      Node n, String kind, int count, int directions) {
    String[] names = n.texts("activations");
    if (names == null) {
      names = new String[count * directions];
      for (int i = 0; i < names.length; i++) {
        names[i] = kind.equals("RNN") || i % count > 0 ? "Tanh" : "Sigmoid";
      }
    }
    if (names.length != count * directions) {
      throw n.wrong(names.length + " activations; " + count * directions + " are needed");
    }
    Function<Tensor, Tensor>[] functions = new Function[names.length];
    for (int i = 0; i < names.length; i++) {
      functions[i] =
          switch (names[i].toLowerCase(Locale.ROOT)) {
            case "tanh" -> Tensor::tanh;
            case "sigmoid" -> Tensor::sigmoid;
            case "relu" -> Tensor::relu;
            default -> throw n.unsupported("the activation " + names[i]);
          };
    }
    return functions;
  }
}
