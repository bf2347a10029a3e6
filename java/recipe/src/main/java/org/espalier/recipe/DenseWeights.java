package org.espalier.recipe;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;
import org.espalier.format.AtomicFile;
import org.espalier.format.FileTree;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.torch.Parameter;
import org.espalier.torch.onnx.GraphParameters;

/**
 * The parameters of a float model as tensors with their names: matrices of linear layers as [out, in], the
 * layout of PyTorch's modules, whatever the graph has.
 */
final class DenseWeights {
  private static final List<String> SUFFIXES = List.of("_latent", "_fitted", "_transposed");

  private DenseWeights() {}

  /**
   * Writes all parameters as float32: {@code model.safetensors}, and one in each folder that a checkpoint has for a module of
   * its own.
   *
   * @param modules these folders, of sentence-transformers
   * @return the files, {@code model.safetensors} of the folder itself first
   */
  static List<Path> write(OnnxModel model, Path folder, List<String> modules) {
    List<Path> files = new ArrayList<>();
    files.add(write(model, folder, "", name -> moduleOf(name, modules) == null));
    files.addAll(writeModules(model, folder, modules));
    return files;
  }

  /** The same of the modules alone. */
  static List<Path> writeModules(OnnxModel model, Path folder, List<String> modules) {
    return modules.stream()
        .map(
            module ->
                write(model, folder, module + "/", name -> module.equals(moduleOf(name, modules))))
        .toList();
  }

  /** The folder of the module whose parameter this is; null where it is the model's own. */
  static String moduleOf(String name, List<String> modules) {
    return modules.stream().filter(m -> name.startsWith(m + "/")).findFirst().orElse(null);
  }

  /**
   * One file.
   *
   * @param prefix its folder, and what the names of its tensors have in the graph in front
   */
  private static Path write(
      OnnxModel model, Path folder, String prefix, Predicate<String> included) {
    Map<String, GraphParameters.Entry> entries = new LinkedHashMap<>();
    List<TensorSpec> specs = new ArrayList<>();
    for (GraphParameters.Entry e : GraphParameters.of(model).parameters()) {
      if (!included.test(e.name())) {
        continue;
      }
      long[] dims = model.constant(e.constant()).dims();
      // Two parameters may share a plain name, as an embedding that is a head too.
      String plain = plain(e.name()).substring(prefix.length());
      String name = entries.containsKey(plain) ? e.name().substring(prefix.length()) : plain;
      entries.put(name, e);
      specs.add(new TensorSpec(name, SafetensorsDtype.F32, shape(e, dims)));
    }
    Path target = folder.resolve(prefix + "model.safetensors");
    FileTree.createFolder(target.getParent());
    try (AtomicFile file = AtomicFile.create(target)) {
      SafetensorsWriter writer = new SafetensorsWriter(file, specs, Map.of("format", "pt"));
      entries.forEach((name, e) -> writer.append(name, bytes(model.constant(e.constant()), e)));
      writer.finish();
      file.commit();
    }
    return target;
  }

  /** The name of a parameter without what quantization added to it. */
  static String plain(String name) {
    String plain = name;
    for (boolean found = true; found; ) {
      found = false;
      for (String suffix : SUFFIXES) {
        if (plain.endsWith(suffix) && plain.length() > suffix.length()) {
          plain = plain.substring(0, plain.length() - suffix.length());
          found = true;
        }
      }
    }
    return plain;
  }

  /** The dimensions of a tensor as it is written. */
  static List<Long> shape(GraphParameters.Entry e, long[] dims) {
    return isTransposed(e, dims) ? List.of(dims[1], dims[0]) : boxed(dims);
  }

  private static boolean isTransposed(GraphParameters.Entry e, long[] dims) {
    return e.kind() == Parameter.Kind.LINEAR && dims.length == 2 && e.outputAxis() == 1;
  }

  static ByteBuffer bytes(OnnxInitializer tensor, GraphParameters.Entry e) {
    FloatBuffer from = tensor.floats();
    ByteBuffer bytes =
        ByteBuffer.allocate(Math.toIntExact(4 * tensor.elements())).order(ByteOrder.LITTLE_ENDIAN);
    FloatBuffer to = bytes.asFloatBuffer();
    long[] dims = tensor.dims();
    if (isTransposed(e, dims)) {
      int rows = Math.toIntExact(dims[0]);
      int columns = Math.toIntExact(dims[1]);
      for (int r = 0; r < rows; r++) {
        for (int c = 0; c < columns; c++) {
          to.put(c * rows + r, from.get(from.position() + r * columns + c));
        }
      }
    } else {
      to.put(from);
    }
    return bytes;
  }

  private static List<Long> boxed(long[] dims) {
    List<Long> list = new ArrayList<>();
    for (long d : dims) {
      list.add(d);
    }
    return list;
  }
}
