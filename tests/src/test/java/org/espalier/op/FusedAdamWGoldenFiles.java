package org.espalier.op;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.espalier.GoldenFiles;
import org.espalier.format.AtomicFile;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;

/**
 * Writes the files {@code adamw_*.safetensors}: AdamW in double precision, straight from its formulas
 * (Loshchilov and Hutter; PyTorch's documentation of torch.optim.AdamW writes the same). p0 and the
 * gradients g1, g2, … are F32; the weights p1, p2, … and, after the last step, the moments m and v are
 * F64.
 */
final class FusedAdamWGoldenFiles {
  /** One file. */
  record Settings(
      String name,
      double lr,
      double beta1,
      double beta2,
      double eps,
      double weightDecay,
      boolean maximize,
      int elements,
      int steps) {}

  static final List<Settings> ALL =
      List.of(
          new Settings("adamw_plain", 1e-3, 0.9, 0.999, 1e-8, 0, false, 1003, 6),
          new Settings("adamw_weight_decay", 1e-2, 0.9, 0.999, 1e-8, 0.1, false, 1003, 6),
          new Settings("adamw_betas", 1e-2, 0.5, 0.9, 1e-6, 0.01, false, 257, 10),
          new Settings("adamw_no_memory", 1e-3, 0, 0, 1e-3, 0.01, false, 33, 3),
          new Settings("adamw_maximize", 1e-3, 0.9, 0.98, 1e-9, 0.01, true, 1003, 6),
          new Settings("adamw_long", 3e-4, 0.9, 0.999, 1e-8, 0.01, false, 64, 100));

  private FusedAdamWGoldenFiles() {}

  /** Writes them into the repository's folder, where they already are. */
  public static void main(String[] arguments) {
    for (Settings settings : ALL) {
      write(settings, GoldenFiles.directory().resolve(settings.name() + ".safetensors"));
    }
  }

  static void write(Settings s, Path file) {
    Map<String, double[]> tensors = compute(s);
    Map<String, String> metadata = new LinkedHashMap<>();
    metadata.put("lr", Double.toString(s.lr()));
    metadata.put("beta1", Double.toString(s.beta1()));
    metadata.put("beta2", Double.toString(s.beta2()));
    metadata.put("eps", Double.toString(s.eps()));
    metadata.put("weight_decay", Double.toString(s.weightDecay()));
    metadata.put("maximize", s.maximize() ? "True" : "False");
    List<TensorSpec> specs = new ArrayList<>();
    tensors.forEach(
        (name, values) ->
            specs.add(new TensorSpec(name, dtype(name), List.of((long) values.length))));
    try (AtomicFile target = AtomicFile.create(file)) {
      SafetensorsWriter writer = new SafetensorsWriter(target, specs, metadata);
      tensors.forEach((name, values) -> writer.append(name, bytes(dtype(name), values)));
      writer.finish();
      target.commit();
    }
  }

  private static Map<String, double[]> compute(Settings s) {
    Random random = new Random(s.name().hashCode());
    double[] p = floats(random, s.elements(), 1);
    double[] m = new double[p.length];
    double[] v = new double[p.length];
    Map<String, double[]> tensors = new LinkedHashMap<>();
    tensors.put("p0", p.clone());
    for (int t = 1; t <= s.steps(); t++) {
      // Gradients of all sizes, some of them zero: what they are is nearly lost in the step.
      double[] g = floats(random, p.length, StrictMath.pow(10, random.nextInt(7) - 5));
      g[random.nextInt(g.length)] = 0;
      for (int i = 0; i < p.length; i++) {
        double d = s.maximize() ? -g[i] : g[i];
        p[i] -= s.lr() * s.weightDecay() * p[i];
        m[i] = s.beta1() * m[i] + (1 - s.beta1()) * d;
        v[i] = s.beta2() * v[i] + (1 - s.beta2()) * d * d;
        double mHat = m[i] / (1 - StrictMath.pow(s.beta1(), t));
        double vHat = v[i] / (1 - StrictMath.pow(s.beta2(), t));
        p[i] -= s.lr() * mHat / (Math.sqrt(vHat) + s.eps());
      }
      tensors.put("g" + t, g);
      tensors.put("p" + t, p.clone());
    }
    tensors.put("m", m);
    tensors.put("v", v);
    return tensors;
  }

  private static SafetensorsDtype dtype(String tensor) {
    return tensor.equals("p0") || tensor.startsWith("g")
        ? SafetensorsDtype.F32
        : SafetensorsDtype.F64;
  }

  private static ByteBuffer bytes(SafetensorsDtype dtype, double[] values) {
    ByteBuffer bytes =
        ByteBuffer.allocate(values.length * dtype.bits() / 8).order(ByteOrder.LITTLE_ENDIAN);
    for (double value : values) {
      if (dtype == SafetensorsDtype.F32) {
        bytes.putFloat((float) value);
      } else {
        bytes.putDouble(value);
      }
    }
    return bytes.flip();
  }

  /** Normal deviates that are floats. */
  private static double[] floats(Random random, int n, double deviation) {
    double[] values = new double[n];
    for (int i = 0; i < n; i++) {
      values[i] = (float) (random.nextGaussian() * deviation);
    }
    return values;
  }
}
