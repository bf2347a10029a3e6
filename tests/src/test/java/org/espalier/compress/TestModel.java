package org.espalier.compress;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.espalier.format.Names;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;

/** A small model for tests: its tensors, its files, and conversions written for clarity. */
final class TestModel {
  private final SortedMap<String, TensorSpec> specs = new TreeMap<>(Names.ORDER);
  private final Map<String, byte[]> bytes = new LinkedHashMap<>();

  /** Adds a tensor of those values, rounded towards zero to its type. */
  TestModel add(String name, SafetensorsDtype dtype, float[] values, long... shape) {
    List<Long> sizes = Arrays.stream(shape).boxed().toList();
    specs.put(name, new TensorSpec(name, dtype, sizes));
    bytes.put(name, encode(dtype, values));
    return this;
  }

  /** Adds a tensor of normal values, some of them equal and some of them zero. */
  TestModel addRandom(Random random, String name, SafetensorsDtype dtype, long... shape) {
    float[] values = new float[(int) Arrays.stream(shape).reduce(1, (a, b) -> a * b)];
    for (int i = 0; i < values.length; i++) {
      float value = (float) random.nextGaussian() * 0.05f;
      values[i] = random.nextInt(3) == 0 ? Math.round(value * 100) / 100f : value;
    }
    return add(name, dtype, values, shape);
  }

  /** Layers of all types, embeddings, a norm, and what kernels cannot compute on. */
  static TestModel transformer() {
    Random random = new Random(7);
    return new TestModel()
        .addRandom(random, "model.embed_tokens.weight", SafetensorsDtype.BF16, 40, 16)
        .addRandom(random, "model.layers.0.q_proj.weight", SafetensorsDtype.BF16, 24, 16)
        .addRandom(random, "model.layers.0.q_proj.bias", SafetensorsDtype.BF16, 24)
        .addRandom(random, "model.layers.0.up_proj.weight", SafetensorsDtype.F32, 33, 16)
        .addRandom(random, "model.layers.0.norm.weight", SafetensorsDtype.F32, 16)
        .addRandom(random, "model.layers.1.q_proj.weight", SafetensorsDtype.F16, 17, 16)
        .addRandom(random, "model.layers.1.conv.weight", SafetensorsDtype.F32, 6, 8, 3, 3)
        .add("model.position_ids", SafetensorsDtype.I64, new float[8], 1, 8)
        .addRandom(random, "lm_head.weight", SafetensorsDtype.BF16, 40, 16);
  }

  Map<String, TensorSpec> specs() {
    return specs;
  }

  byte[] bytes(String name) {
    return bytes.get(name);
  }

  float[] values(String name) {
    return decode(specs.get(name).dtype(), bytes.get(name));
  }

  /** Writes one file. */
  Path file(Path path) {
    Map<TensorSpec, byte[]> tensors = new LinkedHashMap<>();
    specs.forEach((name, spec) -> tensors.put(spec, bytes.get(name)));
    return RawSafetensors.write(path, Map.of("format", "pt"), tensors);
  }

  /** Writes a folder with one file and what lies beside it. */
  Path single(Path folder) throws IOException {
    beside(folder);
    file(folder.resolve(Checkpoint.SINGLE));
    return folder;
  }

  /** Writes a folder of shards, a tensor to each in turn. */
  Path sharded(Path folder, int shards) throws IOException {
    beside(folder);
    StringBuilder weightMap = new StringBuilder();
    for (int shard = 0; shard < shards; shard++) {
      String file = "model-%05d-of-%05d.safetensors".formatted(shard + 1, shards);
      Map<TensorSpec, byte[]> tensors = new LinkedHashMap<>();
      int number = 0;
      for (TensorSpec spec : specs.values()) {
        if (number++ % shards == shard) {
          tensors.put(spec, bytes.get(spec.name()));
          weightMap
              .append(weightMap.isEmpty() ? "" : ",")
              .append("\"%s\":\"%s\"".formatted(spec.name(), file));
        }
      }
      RawSafetensors.write(folder.resolve(file), Map.of("format", "pt"), tensors);
    }
    Files.writeString(
        folder.resolve(Checkpoint.INDEX),
        "{\"metadata\":{\"total_size\":0},\"weight_map\":{" + weightMap + "}}");
    return folder;
  }

  private static void beside(Path folder) throws IOException {
    Files.createDirectories(folder.resolve("sub"));
    Files.createDirectories(folder.resolve(".git"));
    Files.writeString(folder.resolve("config.json"), "{\"model_type\":\"llama\"}");
    Files.writeString(folder.resolve("tokenizer.json"), "tokens");
    Files.writeString(folder.resolve("sub/notes.txt"), "notes");
    Files.writeString(folder.resolve(".git/HEAD"), "ref");
    Files.createSymbolicLink(folder.resolve("vocab.txt"), folder.resolve("tokenizer.json"));
  }

  /** All bytes of a tensor of a checkpoint. */
  static byte[] read(Checkpoint checkpoint, String name) {
    return RawSafetensors.read(checkpoint.fileOf(name), name);
  }

  static float[] values(Checkpoint checkpoint, String name) {
    TensorInfo tensor = checkpoint.tensor(name);
    return decode(tensor.dtype(), read(checkpoint, name));
  }

  /** The names of all files under a folder. */
  static List<String> files(Path folder) throws IOException {
    try (Stream<Path> files = Files.walk(folder)) {
      return files
          .filter(Files::isRegularFile)
          .map(f -> folder.relativize(f).toString())
          .sorted()
          .toList();
    }
  }

  static byte[] encode(SafetensorsDtype dtype, float[] values) {
    ByteBuffer bytes =
        ByteBuffer.allocate((int) dtype.bytes(values.length)).order(ByteOrder.LITTLE_ENDIAN);
    for (float value : values) {
      switch (dtype) {
        case F32 -> bytes.putFloat(value);
        case BF16 -> bytes.putShort((short) (Float.floatToRawIntBits(value) >> 16));
        case F16 -> bytes.putShort(toHalf(value));
        case F64 -> bytes.putDouble(value);
        case I64 -> bytes.putLong((long) value);
        default -> throw new IllegalArgumentException(dtype.toString());
      }
    }
    return bytes.array();
  }

  static float[] decode(SafetensorsDtype dtype, byte[] from) {
    ByteBuffer bytes = ByteBuffer.wrap(from).order(ByteOrder.LITTLE_ENDIAN);
    float[] values = new float[(int) (8L * from.length / dtype.bits())];
    for (int i = 0; i < values.length; i++) {
      values[i] =
          switch (dtype) {
            case F32 -> bytes.getFloat();
            case BF16 -> Float.intBitsToFloat(bytes.getShort() << 16);
            case F16 -> fromHalf(bytes.getShort());
            case I8 -> bytes.get();
            default -> throw new IllegalArgumentException(dtype.toString());
          };
    }
    return values;
  }

  static float fromHalf(short half) {
    int exponent = half >> 10 & 31;
    int mantissa = half & 0x3ff;
    double magnitude =
        exponent == 0
            ? mantissa * 0x1p-24
            : exponent == 31
                ? (mantissa == 0 ? Double.POSITIVE_INFINITY : Double.NaN)
                : (1024 + mantissa) * Math.pow(2, exponent - 25);
    return (float) (half < 0 ? -magnitude : magnitude);
  }

  /** The largest half of no larger magnitude, found by bisection. */
  static short toHalf(float value) {
    int low = 0;
    int high = 0x7c00;
    while (high - low > 1) {
      int middle = (low + high) / 2;
      if (fromHalf((short) middle) <= Math.abs(value)) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return (short) (value < 0 ? low | 0x8000 : low);
  }

  /** The value of the type that is nearest, of two the one with an even mantissa. */
  static float nearest(SafetensorsDtype dtype, float value) {
    if (dtype == SafetensorsDtype.F32) {
      return value;
    }
    if (value < 0) {
      return -nearest(dtype, -value);
    }
    int below =
        dtype == SafetensorsDtype.BF16 ? Float.floatToRawIntBits(value) >> 16 : toHalf(value);
    float[] both =
        decode(
            dtype,
            new byte[] {
              (byte) below, (byte) (below >> 8), (byte) (below + 1), (byte) (below + 1 >> 8)
            });
    double down = (double) value - both[0];
    double up = (double) both[1] - value;
    return down < up || down == up && below % 2 == 0 ? both[0] : both[1];
  }
}
