package org.espalier.transformers;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.espalier.InputException;
import org.espalier.format.FileRegions;
import org.espalier.format.Names;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorInfo;

/** The tensors of a checkpoint, taken as constants of a graph: each checked, none copied. */
final class CheckpointTensors {
  private static final Map<SafetensorsDtype, DataType> FLOATS =
      new EnumMap<>(
          Map.of(
              SafetensorsDtype.F32, DataType.FLOAT,
              SafetensorsDtype.F16, DataType.FLOAT16,
              SafetensorsDtype.BF16, DataType.BFLOAT16));

  private final Checkpoint checkpoint;
  private final String prefix;
  private final FileRegions regions = new FileRegions();
  private final Set<String> taken = new HashSet<>();

  CheckpointTensors(Checkpoint checkpoint) {
    this(checkpoint, "");
  }

  /**
   * @param prefix what the names of constants have in front of those of tensors
   */
  CheckpointTensors(Checkpoint checkpoint, String prefix) {
    this.checkpoint = checkpoint;
    this.prefix = prefix;
  }

  /** What messages call the checkpoint. */
  String place() {
    return checkpoint.path().toString();
  }

  /** Whether there is a tensor of this name. */
  boolean has(String name) {
    return checkpoint.tensor(name) != null;
  }

  /** Whether there is a tensor of this name and type. */
  boolean has(String name, SafetensorsDtype type) {
    return has(name) && checkpoint.tensor(name).dtype() == type;
  }

  /** How many columns a matrix has; 0 where there is none of this name. */
  long columns(String name) {
    TensorInfo info = checkpoint.tensor(name);
    return info == null || info.rank() != 2 ? 0 : info.shape().get(1);
  }

  /** Whether there is a tensor of one element that has no rows and columns. */
  boolean isNumber(String name) {
    TensorInfo info = checkpoint.tensor(name);
    return info != null && (info.rank() == 0 || info.shape().equals(List.of(1L)));
  }

  /** Takes a tensor that {@link #isNumber}, of floats, and gives it dimensions [1]. */
  OnnxInitializer number(String name) {
    TensorInfo info = checkpoint.tensor(name);
    return floats(name, info.rank() == 0 ? new long[0] : new long[] {1}, new long[] {1});
  }

  /**
   * Takes a tensor of floats.
   *
   * @param dims what its shape must be
   * @throws InputException if there is none, or it has another shape or is not of floats
   */
  OnnxInitializer floats(String name, long... dims) {
    TensorInfo info = take(name, FLOATS.keySet(), dims);
    return constant(info, FLOATS.get(info.dtype()), dims);
  }

  /**
   * The same in other dimensions.
   *
   * @param stored what its shape must be
   * @param dims of as many elements
   */
  OnnxInitializer floats(String name, long[] stored, long[] dims) {
    TensorInfo info = take(name, FLOATS.keySet(), stored);
    return constant(info, FLOATS.get(info.dtype()), dims);
  }

  /**
   * Takes the bytes of a tensor as they lie.
   *
   * @param type that it must have
   * @param stored what its shape must be
   * @param as the type that they are read as, with {@code dims}
   */
  OnnxInitializer bytes(
      String name, SafetensorsDtype type, long[] stored, DataType as, long[] dims) {
    return constant(take(name, Set.of(type), stored), as, dims);
  }

  /** Refuses scales that are NaN or infinite. */
  void requireFinite(OnnxInitializer scales) {
    FloatBuffer values = scales.floats();
    for (int i = 0; i < values.limit(); i++) {
      if (!Float.isFinite(values.get(i))) {
        throw new InputException(
            place()
                + ": "
                + scales.name()
                + " has the scale "
                + values.get(i)
                + "; finite numbers are right");
      }
    }
  }

  /** Takes a tensor of whole numbers of 32 bits and reads it. */
  int[] words(String name, long... dims) {
    TensorInfo info = take(name, Set.of(SafetensorsDtype.I32), dims);
    if (info.bytes() > Integer.MAX_VALUE) {
      throw new InputException(
          place() + ": the tensor " + Names.quote(name) + " has " + info.bytes() + " bytes");
    }
    ByteBuffer bytes =
        ByteBuffer.allocate(Math.toIntExact(info.bytes())).order(ByteOrder.LITTLE_ENDIAN);
    checkpoint.fileOf(name).read(info, 0, bytes);
    int[] words = new int[bytes.capacity() / Integer.BYTES];
    bytes.flip().order(ByteOrder.LITTLE_ENDIAN).asIntBuffer().get(words);
    return words;
  }

  /** Takes a tensor that the graph does without. */
  void ignore(String name) {
    taken.add(name);
  }

  private OnnxInitializer constant(TensorInfo info, DataType type, long[] dims) {
    Path file = checkpoint.fileOf(info.name()).path();
    long offset = checkpoint.fileOf(info.name()).offset(info);
    return OnnxInitializer.inFile(prefix + info.name(), type, dims, file, offset, regions);
  }

  private TensorInfo take(String name, Set<SafetensorsDtype> types, long... dims) {
    TensorInfo info = checkpoint.tensor(name);
    List<Long> wanted = Arrays.stream(dims).boxed().toList();
    if (info == null) {
      throw new InputException(
          place()
              + " has no tensor "
              + Names.quote(name)
              + " of "
              + wanted
              + "; it has "
              + NearNames.list(name, checkpoint.tensors().stream().map(TensorInfo::name).toList()));
    }
    if (!types.contains(info.dtype()) || !info.shape().equals(wanted)) {
      throw new InputException(
          place()
              + ": the tensor "
              + Names.quote(name)
              + " is "
              + info.dtype()
              + info.shape()
              + "; "
              + String.join(" or ", types.stream().map(Enum::name).toList())
              + wanted
              + " is right by its "
              + Configuration.FILE);
    }
    taken.add(name);
    return info;
  }

  /** The tensors that were not taken, by name. */
  Set<String> left() {
    Set<String> names = new TreeSet<>(Names.ORDER);
    checkpoint.tensors().forEach(t -> names.add(t.name()));
    names.removeAll(taken);
    return names;
  }

  /** The files that hold them. */
  Set<Path> files() {
    Set<Path> files = new HashSet<>();
    checkpoint.files().forEach(f -> files.add(f.path()));
    return files;
  }
}
