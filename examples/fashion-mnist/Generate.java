import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import com.google.protobuf.ByteString;
import java.io.BufferedWriter;
import java.io.DataInputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Random;
import java.util.zip.GZIPInputStream;
import org.espalier.format.AtomicFile;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;

/**
 * Writes what the recipes ask for: images and labels of Fashion-MNIST, and a convolutional network with
 * random weights.
 *
 * <p>java -cp … Generate.java DATASET WORK: DATASET has the four files {@code {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz};
 * WORK gets train.safetensors, test.safetensors, untrained.onnx and negatives.csv, a stream of what the classifier was never taught.
 */
public final class Generate {
  private static final int SIDE = 28;
  private static final int PIXELS = SIDE * SIDE;
  private static final int CLASSES = 10;

  private static final int STREAM = 5000;

  /** Of the pixels of all training images, from 0 to 1. */
  private static final float MEAN = 0.2860f;

  private static final float DEVIATION = 0.3530f;

  public static void main(String[] args) throws IOException {
    Path dataset = Path.of(args[0]);
    Path work = Files.createDirectories(Path.of(args[1]));
    write(dataset, "train", work.resolve("train.safetensors"));
    write(dataset, "t10k", work.resolve("test.safetensors"));
    Files.write(work.resolve("untrained.onnx"), network(new Random(2026)).toByteArray());
    writeNegatives(dataset, work.resolve("negatives.csv"));
  }

  /** Test images with black for white, a line each, and their labels. */
  private static void writeNegatives(Path dataset, Path out) throws IOException {
    byte[] images = content(dataset.resolve("t10k-images-idx3-ubyte.gz"), 2051, SIDE, SIDE);
    byte[] classes = content(dataset.resolve("t10k-labels-idx1-ubyte.gz"), 2049);
    String[] texts = new String[256];
    for (int i = 0; i < texts.length; i++) {
      texts[i] = String.format(Locale.ROOT, "%.3f,", ((255 - i) / 255f - MEAN) / DEVIATION);
    }
    try (BufferedWriter lines = Files.newBufferedWriter(out)) {
      for (int i = 0; i < STREAM; i++) {
        for (int k = 0; k < PIXELS; k++) {
          lines.write(texts[Byte.toUnsignedInt(images[i * PIXELS + k])]);
        }
        lines.write(classes[i] + "\n");
      }
    }
  }

  private static void write(Path dataset, String split, Path out) throws IOException {
    byte[] images = content(dataset.resolve(split + "-images-idx3-ubyte.gz"), 2051, SIDE, SIDE);
    byte[] classes = content(dataset.resolve(split + "-labels-idx1-ubyte.gz"), 2049);
    int n = classes.length;
    ByteBuffer pixels = ByteBuffer.allocate(4 * images.length).order(ByteOrder.LITTLE_ENDIAN);
    for (byte pixel : images) {
      pixels.putFloat((Byte.toUnsignedInt(pixel) / 255f - MEAN) / DEVIATION);
    }
    List<TensorSpec> specs =
        List.of(
            new TensorSpec(
                "inputs", SafetensorsDtype.F32, List.of((long) n, 1L, (long) SIDE, (long) SIDE)),
            new TensorSpec("labels", SafetensorsDtype.U8, List.of((long) n)));
    try (AtomicFile file = AtomicFile.create(out)) {
      SafetensorsWriter writer = new SafetensorsWriter(file, specs, Map.of());
      writer.append("inputs", pixels.flip());
      writer.append("labels", ByteBuffer.wrap(classes));
      writer.finish();
      file.commit();
    }
  }

  /** The bytes of an IDX file behind its header: a number for the type, how many, and the sizes of one. */
  private static byte[] content(Path file, int type, int... sizes) throws IOException {
    try (DataInputStream in =
        new DataInputStream(new GZIPInputStream(Files.newInputStream(file)))) {
      int found = in.readInt();
      int n = in.readInt();
      int each = 1;
      for (int size : sizes) {
        each *= in.readInt() == size ? size : 0;
      }
      byte[] bytes = in.readAllBytes();
      if (found != type || each == 0 || bytes.length != (long) n * each) {
        throw new IOException(file + " is no file of Fashion-MNIST");
      }
      return bytes;
    }
  }

  /** Two convolutions with Relu and MaxPool, then two products: 421,642 weights. */
  private static ModelProto network(Random random) {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("classifier")
            .addInput(value("image", 1, SIDE, SIDE))
            .addOutput(value("logits", CLASSES));
    String x = convolution(graph, random, "conv1", "image", 1, 32);
    x = convolution(graph, random, "conv2", x, 32, 64);
    graph.addNode(node("Flatten", "flat", x));
    int left = PIXELS / 16 * 64;
    graph.addInitializer(weight("fc1.weight", random, left, 128, left));
    graph.addInitializer(weight("fc1.bias", random, 0, 128));
    graph.addNode(node("Gemm", "fc1", "flat", "fc1.weight", "fc1.bias"));
    graph.addNode(node("Relu", "hidden", "fc1"));
    graph.addInitializer(weight("fc2.weight", random, 128, CLASSES, 128));
    graph.addInitializer(weight("fc2.bias", random, 0, CLASSES));
    graph.addNode(node("Gemm", "logits", "hidden", "fc2.weight", "fc2.bias"));
    return ModelProto.newBuilder()
        .setIrVersion(8)
        .addOpsetImport(OperatorSetIdProto.newBuilder().setVersion(17))
        .setGraph(graph)
        .build();
  }

  /** Adds a convolution of 3 x 3, Relu and a MaxPool that halves the image. */
  private static String convolution(
      GraphProto.Builder graph, Random random, String name, String x, int in, int out) {
    graph.addInitializer(weight(name + ".weight", random, 9 * in, out, in, 3, 3));
    graph.addInitializer(weight(name + ".bias", random, 0, out));
    graph.addNode(
        node("Conv", name, x, name + ".weight", name + ".bias").toBuilder()
            .addAttribute(list("kernel_shape", 3, 3))
            .addAttribute(list("pads", 1, 1, 1, 1)));
    graph.addNode(node("Relu", name + ".relu", name));
    graph.addNode(
        node("MaxPool", name + ".pool", name + ".relu").toBuilder()
            .addAttribute(list("kernel_shape", 2, 2))
            .addAttribute(list("strides", 2, 2)));
    return name + ".pool";
  }

  private static NodeProto node(String operator, String output, String... inputs) {
    NodeProto.Builder node =
        NodeProto.newBuilder().setOpType(operator).setName(output).addOutput(output);
    if (operator.equals("Gemm")) {
      node.addAttribute(
          AttributeProto.newBuilder()
              .setName("transB")
              .setType(AttributeProto.AttributeType.INT)
              .setI(1));
    }
    return node.addAllInput(List.of(inputs)).build();
  }

  private static AttributeProto list(String name, long... values) {
    AttributeProto.Builder attribute =
        AttributeProto.newBuilder().setName(name).setType(AttributeProto.AttributeType.INTS);
    for (long value : values) {
      attribute.addInts(value);
    }
    return attribute.build();
  }

  /**
   * Random numbers as He (2015) draws them for what a Relu follows.
   *
   * @param fanIn how many numbers a sum has; 0 for zeros
   */
  private static TensorProto weight(String name, Random random, int fanIn, long... dims) {
    TensorProto.Builder tensor =
        TensorProto.newBuilder().setName(name).setDataType(TensorProto.DataType.FLOAT.getNumber());
    long n = 1;
    for (long size : dims) {
      tensor.addDims(size);
      n *= size;
    }
    ByteBuffer data = ByteBuffer.allocate(4 * (int) n).order(ByteOrder.LITTLE_ENDIAN);
    while (data.hasRemaining()) {
      data.putFloat(fanIn == 0 ? 0 : (float) (Math.sqrt(2.0 / fanIn) * random.nextGaussian()));
    }
    return tensor.setRawData(ByteString.copyFrom(data.flip())).build();
  }

  /** A float tensor of any number of examples. */
  private static ValueInfoProto value(String name, long... dims) {
    TensorShapeProto.Builder shape = TensorShapeProto.newBuilder();
    shape.addDim(TensorShapeProto.Dimension.newBuilder().setDimParam("N"));
    for (long size : dims) {
      shape.addDim(TensorShapeProto.Dimension.newBuilder().setDimValue(size));
    }
    TypeProto.Tensor.Builder type =
        TypeProto.Tensor.newBuilder()
            .setElemType(TensorProto.DataType.FLOAT.getNumber())
            .setShape(shape);
    return ValueInfoProto.newBuilder()
        .setName(name)
        .setType(TypeProto.newBuilder().setTensorType(type))
        .build();
  }
}
