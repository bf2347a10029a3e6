import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Random;

/**
 * Writes what recipe.yaml asks for: points of 20 features in 6 classes, each class four clouds, and a
 * perceptron 20-128-64-6 with random weights. Needs nothing but Java:
 *
 * <pre>  java examples/mlp/Generate.java examples/mlp</pre>
 */
final class Generate {
  private static final int FEATURES = 20;
  private static final int CLASSES = 6;
  private static final int CLOUDS = 4;
  private static final int EXAMPLES = 12_000;

  public static void main(String[] arguments) throws IOException {
    Path folder = Path.of(arguments.length > 0 ? arguments[0] : ".");
    Random random = new Random(2026);
    Files.write(folder.resolve("examples.safetensors"), examples(random));
    Files.write(folder.resolve("model.onnx"), model(random, FEATURES, 128, 64, CLASSES));
  }

  /** A safetensors file: the length of its header, the header, the tensors. */
  private static byte[] examples(Random random) {
    float[][] centre = new float[CLASSES * CLOUDS][FEATURES];
    for (float[] c : centre) {
      for (int i = 0; i < FEATURES; i++) {
        c[i] = (float) random.nextGaussian();
      }
    }
    int inputs = 4 * EXAMPLES * FEATURES;
    int labels = 8 * EXAMPLES;
    StringBuilder header = new StringBuilder();
    header
        .append("{\"labels\":{\"dtype\":\"I64\",\"shape\":[" + EXAMPLES + "],\"data_offsets\":[0,")
        .append(labels + "]},\"inputs\":{\"dtype\":\"F32\",\"shape\":[" + EXAMPLES + "," + FEATURES)
        .append("],\"data_offsets\":[" + labels + "," + (labels + inputs) + "]}}");
    while (header.length() % 8 != 0) {
      header.append(' ');
    }
    ByteBuffer out =
        ByteBuffer.allocate(8 + header.length() + labels + inputs).order(ByteOrder.LITTLE_ENDIAN);
    out.putLong(header.length()).put(header.toString().getBytes(StandardCharsets.UTF_8));
    int[] cloud = random.ints(EXAMPLES, 0, centre.length).toArray();
    for (int c : cloud) {
      out.putLong(c % CLASSES);
    }
    for (int c : cloud) {
      for (int i = 0; i < FEATURES; i++) {
        out.putFloat(centre[c][i] + 0.9f * (float) random.nextGaussian());
      }
    }
    return out.array();
  }

  /** An ONNX model: MatMul, Add and Relu for each layer but the last, which has no Relu. */
  private static byte[] model(Random random, int... widths) throws IOException {
    Message graph = new Message();
    String x = "x";
    for (int l = 1; l < widths.length; l++) {
      String weight = "layer" + l + ".weight";
      String bias = "layer" + l + ".bias";
      double deviation = Math.sqrt(2.0 / widths[l - 1]);
      graph.message(5, tensor(weight, random, deviation, widths[l - 1], widths[l]));
      graph.message(5, tensor(bias, random, 0, widths[l]));
      boolean last = l == widths.length - 1;
      graph.message(1, node("MatMul", "product" + l, x, weight));
      graph.message(1, node("Add", last ? "logits" : "sum" + l, "product" + l, bias));
      if (!last) {
        graph.message(1, node("Relu", "hidden" + l, "sum" + l));
      }
      x = "hidden" + l;
    }
    graph.text(2, "perceptron");
    graph.message(11, value("x", widths[0]));
    graph.message(12, value("logits", widths[widths.length - 1]));
    return new Message()
        .number(1, 8) // version of the format
        .message(7, graph)
        .message(8, new Message().number(2, 17)) // operator set
        .bytes();
  }

  private static Message node(String operator, String output, String... inputs) throws IOException {
    Message node = new Message();
    for (String input : inputs) {
      node.text(1, input);
    }
    return node.text(2, output).text(4, operator);
  }

  private static Message tensor(String name, Random random, double deviation, int... dims)
      throws IOException {
    Message tensor = new Message();
    int n = 1;
    for (int d : dims) {
      tensor.number(1, d);
      n *= d;
    }
    ByteBuffer data = ByteBuffer.allocate(4 * n).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < n; i++) {
      data.putFloat((float) (deviation * random.nextGaussian()));
    }
    return tensor.number(2, 1).text(8, name).raw(9, data.array());
  }

  /** A float tensor [N, width]. */
  private static Message value(String name, int width) throws IOException {
    Message shape =
        new Message()
            .message(1, new Message().text(2, "N"))
            .message(1, new Message().number(1, width));
    Message type = new Message().message(1, new Message().number(1, 1).message(2, shape));
    return new Message().text(1, name).message(2, type);
  }

  /** A protobuf message, field by field. */
  private static final class Message {
    private final ByteArrayOutputStream out = new ByteArrayOutputStream();

    Message number(int field, long value) {
      varint(field << 3);
      varint(value);
      return this;
    }

    Message raw(int field, byte[] value) throws IOException {
      varint(field << 3 | 2);
      varint(value.length);
      out.write(value);
      return this;
    }

    Message text(int field, String value) throws IOException {
      return raw(field, value.getBytes(StandardCharsets.UTF_8));
    }

    Message message(int field, Message value) throws IOException {
      return raw(field, value.bytes());
    }

    byte[] bytes() {
      return out.toByteArray();
    }

    private void varint(long value) {
      while (value > 127) {
        out.write((int) (value & 127 | 128));
        value >>>= 7;
      }
      out.write((int) value);
    }
  }
}
