package org.espalier;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.espalier.backend.CpuThreads;
import org.espalier.backend.Isa;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.op.Variants;
import org.junit.jupiter.api.DynamicTest;

/**
 * Results of another implementation, in safetensors files. They are found by pattern in the
 * directory that the system property {@code espalier.golden} names (default {@code tests/golden}
 * under {@code espalier.root}), so another directory of the same form tests with no change of code.
 */
public final class GoldenFiles {
  /** Checks one file; the instruction set is already in use. */
  public interface Check {
    void check(GoldenFile file, Isa isa);
  }

  private GoldenFiles() {}

  /** The directory that holds the files. */
  public static Path directory() {
    String given = System.getProperty("espalier.golden");
    if (given != null && !given.isEmpty()) {
      return Path.of(given);
    }
    return repository();
  }

  /** The directory of the repository. */
  public static Path repository() {
    return Path.of(System.getProperty("espalier.root", ".."), "tests", "golden").normalize();
  }

  /**
   * One test a file and instruction set, in the order of the files' names.
   *
   * @param glob which files, e.g. {@code fq_*.safetensors}
   * @throws IllegalStateException where no file matches
   */
  public static Stream<DynamicTest> tests(String glob, Check check) {
    List<Path> files = files(directory(), glob);
    if (files.isEmpty()) {
      throw new IllegalStateException("no file " + glob + " in " + directory().toAbsolutePath());
    }
    return tests(files, check);
  }

  /**
   * The same for files that are not PyTorch's but our own: a directory without any, as one of
   * PyTorch's alone is, leaves those of the repository.
   */
  public static Stream<DynamicTest> testsOfOurOwn(Path directory, String glob, Check check) {
    List<Path> files = files(directory, glob);
    return tests(files.isEmpty() ? files(repository(), glob) : files, check);
  }

  private static List<Path> files(Path directory, String glob) {
    List<Path> files = new ArrayList<>();
    try (DirectoryStream<Path> matches = Files.newDirectoryStream(directory, glob)) {
      matches.forEach(files::add);
    } catch (IOException e) {
      throw new IllegalStateException("cannot list " + directory.toAbsolutePath(), e);
    }
    files.sort(null);
    return files;
  }

  private static Stream<DynamicTest> tests(List<Path> files, Check check) {
    return files.stream()
        .flatMap(
            file ->
                Variants.isas()
                    .map(
                        isa ->
                            DynamicTest.dynamicTest(
                                file.getFileName() + " " + isa, () -> run(file, isa, check))));
  }

  private static void run(Path file, Isa isa, Check check) {
    GoldenFile golden = GoldenFile.read(file);
    Variants.with(isa, CpuThreads.get(), () -> check.check(golden, isa));
  }

  /** The tensors and settings of one file, read into arrays. */
  public static final class GoldenFile {
    private final String name;
    private final Map<String, String> metadata;
    private final Map<String, TensorInfo> tensors = new TreeMap<>();
    private final Map<String, ByteBuffer> contents = new TreeMap<>();

    private GoldenFile(String name, Map<String, String> metadata) {
      this.name = name;
      this.metadata = metadata;
    }

    static GoldenFile read(Path path) {
      try (SafetensorsFile file = SafetensorsFile.open(path)) {
        GoldenFile golden =
            new GoldenFile(path.getFileName().toString(), Map.copyOf(file.metadata()));
        for (TensorInfo tensor : file.tensors()) {
          ByteBuffer bytes =
              ByteBuffer.allocate(Math.toIntExact(tensor.bytes())).order(ByteOrder.LITTLE_ENDIAN);
          file.read(tensor, 0, bytes);
          golden.tensors.put(tensor.name(), tensor);
          golden.contents.put(tensor.name(), bytes.flip());
        }
        return golden;
      }
    }

    /** The names of the tensors, sorted. */
    public List<String> names() {
      return List.copyOf(tensors.keySet());
    }

    public boolean hasTensor(String tensor) {
      return tensors.containsKey(tensor);
    }

    public boolean hasSetting(String key) {
      return metadata.containsKey(key);
    }

    /**
     * A setting from {@code __metadata__}.
     *
     * @throws IllegalArgumentException where the file has none of that name
     */
    public String setting(String key) {
      String value = metadata.get(key);
      if (value == null) {
        throw new IllegalArgumentException(name + " has no setting " + key + ": " + metadata);
      }
      return value;
    }

    /** The same, or {@code otherwise} where the file has none. */
    public String setting(String key, String otherwise) {
      return metadata.getOrDefault(key, otherwise);
    }

    public int intSetting(String key) {
      return Integer.parseInt(setting(key));
    }

    public double doubleSetting(String key, double otherwise) {
      return hasSetting(key) ? Double.parseDouble(setting(key)) : otherwise;
    }

    /** A setting as Python writes it: {@code True} or {@code False}. */
    public boolean booleanSetting(String key, boolean otherwise) {
      String value = setting(key, otherwise ? "True" : "False");
      if (!value.equals("True") && !value.equals("False")) {
        throw new IllegalArgumentException(name + ": " + key + " is " + value);
      }
      return value.equals("True");
    }

    public long[] shape(String tensor) {
      return info(tensor).shape().stream().mapToLong(Long::longValue).toArray();
    }

    public float[] floats(String tensor) {
      float[] values = new float[elements(tensor)];
      bytes(tensor, SafetensorsDtype.F32).asFloatBuffer().get(values);
      return values;
    }

    /** An F64 tensor, or an F32 tensor widened. */
    public double[] doubles(String tensor) {
      double[] values = new double[elements(tensor)];
      if (info(tensor).dtype() == SafetensorsDtype.F32) {
        float[] narrow = floats(tensor);
        for (int i = 0; i < values.length; i++) {
          values[i] = narrow[i];
        }
      } else {
        bytes(tensor, SafetensorsDtype.F64).asDoubleBuffer().get(values);
      }
      return values;
    }

    public int[] ints(String tensor) {
      int[] values = new int[elements(tensor)];
      bytes(tensor, SafetensorsDtype.I32).asIntBuffer().get(values);
      return values;
    }

    public long[] longs(String tensor) {
      long[] values = new long[elements(tensor)];
      bytes(tensor, SafetensorsDtype.I64).asLongBuffer().get(values);
      return values;
    }

    /** A U8, I8 or BOOL tensor. */
    public byte[] bytes(String tensor) {
      if (info(tensor).dtype().bits() != 8) {
        throw wrongType(tensor, "one byte an element");
      }
      byte[] values = new byte[elements(tensor)];
      contents.get(tensor).duplicate().get(values);
      return values;
    }

    private ByteBuffer bytes(String tensor, SafetensorsDtype dtype) {
      if (info(tensor).dtype() != dtype) {
        throw wrongType(tensor, dtype.toString());
      }
      return contents.get(tensor).duplicate().order(ByteOrder.LITTLE_ENDIAN);
    }

    private int elements(String tensor) {
      return Math.toIntExact(info(tensor).elements());
    }

    private TensorInfo info(String tensor) {
      TensorInfo info = tensors.get(tensor);
      if (info == null) {
        throw new IllegalArgumentException(
            name + " has no tensor " + tensor + ", only " + tensors.keySet());
      }
      return info;
    }

    private IllegalArgumentException wrongType(String tensor, String wanted) {
      return new IllegalArgumentException(
          name + ": " + tensor + " is " + info(tensor).dtype() + ", not " + wanted);
    }

    @Override
    public String toString() {
      return name;
    }
  }
}
