package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataLocation;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.google.protobuf.ByteString;
import com.google.protobuf.UnsafeByteOperations;
import java.io.IOException;
import java.lang.ref.WeakReference;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.function.Supplier;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.espalier.InputException;
import org.espalier.format.FileRegions;
import org.espalier.format.HalfFloats;

/**
 * A constant tensor of a model: its name, type, dimensions and little-endian data. The data is a
 * view of the memory-mapped model file wherever possible. Immutable and safe for several threads,
 * as long as nobody changes the files or the buffers that it was made from.
 */
public final class OnnxInitializer {
  private static final int PART = 1 << 26;

  /** Bytes of a tensor that is made anew when it is needed; smaller ones are held. */
  private static final int LEAST_COMPUTED = 1 << 20;

  /** Elements that one thread converts at once. */
  private static final int CONVERTED = 1 << 16;

  private final String name;
  private final DataType type;
  private final long[] dims;
  private final long elements;

  /** The message, with its data; null where {@link #file} holds more than one message can, or data is {@link #computed}. */
  private final TensorProto proto;

  private final Path file;
  private final long fileOffset;

  /** Makes all data; null where it is there. */
  private final Supplier<ByteBuffer> computed;

  /** What {@link #computed} made last, as long as somebody uses it. */
  private volatile WeakReference<ByteBuffer> made = new WeakReference<>(null);

  private OnnxInitializer(
      String name, DataType type, long[] dims, TensorProto proto, Path file, long fileOffset) {
    this(name, type, dims, proto, file, fileOffset, null);
  }

  private OnnxInitializer(
      String name,
      DataType type,
      long[] dims,
      TensorProto proto,
      Path file,
      long fileOffset,
      Supplier<ByteBuffer> computed) {
    this.name = name;
    this.type = type;
    this.dims = dims;
    this.elements = OnnxTensors.elements(dims);
    this.proto = proto;
    this.file = file;
    this.fileOffset = fileOffset;
    this.computed = computed;
  }

  /**
   * The tensor of a message that is part of an {@link OnnxModel}, and so was checked: of an
   * attribute, say.
   */
  public static OnnxInitializer ofMessage(TensorProto proto) {
    return new OnnxInitializer(
        proto.getName(),
        OnnxTensors.type(proto),
        proto.getDimsList().stream().mapToLong(Long::longValue).toArray(),
        proto,
        null,
        0);
  }

  /** A tensor of more than 2 GiB, which stays in its file. */
  static OnnxInitializer ofFile(TensorProto proto, Path file, long offset) {
    return new OnnxInitializer(
        proto.getName(),
        OnnxTensors.type(proto),
        proto.getDimsList().stream().mapToLong(Long::longValue).toArray(),
        null,
        file,
        offset);
  }

  /**
   * A tensor whose data lies in a file, of any size.
   *
   * @param offset the first byte; as many follow as type and dimensions ask for
   * @param regions parts of files that are mapped together
   */
  public static OnnxInitializer inFile(
      String name, DataType type, long[] dims, Path file, long offset, FileRegions regions) {
    long bytes = OnnxTensors.bytes(type, OnnxTensors.elements(dims));
    return bytes > Integer.MAX_VALUE
        ? new OnnxInitializer(name, type, dims.clone(), null, file, offset)
        : of(name, type, dims, regions.bytes(file, offset, (int) bytes));
  }

  /**
   * A tensor over {@code data} from its position to its limit, which is not copied and must not
   * change afterwards.
   *
   * @param dims the dimensions, none negative; empty for a scalar
   * @param data little-endian elements, exactly as many bytes as type and dimensions ask for
   */
  public static OnnxInitializer of(String name, DataType type, long[] dims, ByteBuffer data) {
    long bytes = OnnxTensors.bytes(type, OnnxTensors.elements(dims));
    if (data.remaining() != bytes) {
      throw new IllegalArgumentException(
          name + " " + type + Arrays.toString(dims) + " takes " + bytes + " bytes, not " + data);
    }
    TensorProto.Builder proto =
        TensorProto.newBuilder().setName(name).setDataType(type.getNumber());
    for (long d : dims) {
      proto.addDims(d);
    }
    proto.setRawData(UnsafeByteOperations.unsafeWrap(data));
    return new OnnxInitializer(name, type, dims.clone(), proto.build(), null, 0);
  }

  /**
   * A tensor whose data is made when it is asked for, and again when it is asked for later: of large ones, of which what they
   * are made of is in memory or mapped anyway.
   *
   * @param data gives the same each time, as {@link #of} takes it; of less than 2 GiB
   */
  public static OnnxInitializer computed(
      String name, DataType type, long[] dims, Supplier<ByteBuffer> data) {
    return OnnxTensors.bytes(type, OnnxTensors.elements(dims)) < LEAST_COMPUTED
        ? of(name, type, dims, data.get())
        : new OnnxInitializer(name, type, dims.clone(), null, null, 0, data);
  }

  /** A FLOAT tensor. */
  public static OnnxInitializer floats(String name, long[] dims, float... values) {
    ByteBuffer data = allocate(4L * values.length);
    data.asFloatBuffer().put(values);
    return of(name, DataType.FLOAT, dims, data);
  }

  /**
   * A tensor of floats.
   *
   * @param type FLOAT, or FLOAT16 or BFLOAT16, to which each value is rounded as by {@link #rounded}
   */
  public static OnnxInitializer floats(String name, DataType type, long[] dims, float... values) {
    OnnxInitializer exact = floats(name, dims, values);
    return type == DataType.FLOAT ? exact : exact.rounded(type);
  }

  /** An INT32 tensor. */
  public static OnnxInitializer int32s(String name, long[] dims, int... values) {
    ByteBuffer data = allocate(4L * values.length);
    data.asIntBuffer().put(values);
    return of(name, DataType.INT32, dims, data);
  }

  /** An INT64 tensor. */
  public static OnnxInitializer int64s(String name, long[] dims, long... values) {
    ByteBuffer data = allocate(8L * values.length);
    data.asLongBuffer().put(values);
    return of(name, DataType.INT64, dims, data);
  }

  /** An INT8 or UINT8 tensor. */
  public static OnnxInitializer bytes(String name, DataType type, long[] dims, byte... values) {
    if (type != DataType.INT8 && type != DataType.UINT8) {
      throw new IllegalArgumentException(type + " is not a type of one byte");
    }
    return of(name, type, dims, allocate(values.length).put(values).flip());
  }

  public String name() {
    return name;
  }

  public DataType type() {
    return type;
  }

  /** Whether its numbers are float32, float16 or bfloat16. */
  public boolean isFloat() {
    return ValueTypes.isFloat(type);
  }

  /** The dimensions, in a copy. */
  public long[] dims() {
    return dims.clone();
  }

  /** The product of the dimensions. */
  public long elements() {
    return elements;
  }

  /** The number of bytes of {@link #data()}; 4-bit types take two elements a byte. */
  public long byteLength() {
    return OnnxTensors.bytes(type, elements);
  }

  /** The bytes that it takes where floats have 32 bits. */
  public long float32Bytes() {
    return isFloat() ? Float.BYTES * elements : byteLength();
  }

  /**
   * All data, little-endian, in a direct read-only buffer that is aligned for its element type: a
   * view where the file allows it, otherwise a copy.
   *
   * @throws InputException if the tensor has 2 GiB or more ({@link #data(long, int)} reads it in
   *     parts), is of strings, or holds values outside its type's range
   */
  public ByteBuffer data() {
    if (byteLength() > Integer.MAX_VALUE) {
      throw new InputException(
          "the tensor " + name + " has " + byteLength() + " bytes; at most 2147483647 can be used");
    }
    return data(0, (int) byteLength());
  }

  /**
   * {@code length} bytes from byte {@code offset} on, as {@link #data()} gives them.
   *
   * @throws IndexOutOfBoundsException if the tensor has fewer bytes
   */
  public ByteBuffer data(long offset, int length) {
    Objects.checkFromIndexSize(offset, length, byteLength());
    ByteBuffer part;
    if (computed != null) {
      part = made().slice((int) offset, length);
    } else if (proto == null) {
      try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
        part = channel.map(FileChannel.MapMode.READ_ONLY, fileOffset + offset, length);
      } catch (IOException e) {
        throw new InputException("cannot read " + file + ": " + e.getMessage(), e);
      }
    } else {
      ByteString raw = proto.hasRawData() ? proto.getRawData() : null;
      ByteBuffer all = raw == null ? OnnxTensors.typedData(proto) : raw.asReadOnlyByteBuffer();
      part = all.slice(all.position() + (int) offset, length); // of a heap buffer it is not 0
    }
    int unit = Math.max(1, OnnxTensors.bits(type) / 8);
    if (!part.isDirect() || length > 0 && part.alignmentOffset(0, Math.min(unit, 8)) != 0) {
      part = allocate(length).put(part).flip();
    }
    return part.asReadOnlyBuffer().order(ByteOrder.LITTLE_ENDIAN);
  }

  private ByteBuffer made() {
    ByteBuffer data = made.get();
    if (data == null) {
      data = computed.get();
      made = new WeakReference<>(data);
    }
    return data;
  }

  /** All data in parts, in order, each as {@link #data(long, int)} gives it. */
  Iterable<ByteBuffer> parts() {
    if (computed != null) {
      return List.of(data());
    }
    return () ->
        LongStream.iterate(0, done -> done < byteLength(), done -> done + PART)
            .mapToObj(done -> data(done, (int) Math.min(PART, byteLength() - done)))
            .iterator();
  }

  /**
   * All elements of a floating-point tensor as float32: a read-only view of {@link #data()} for
   * FLOAT, a converted copy for FLOAT16, BFLOAT16 and DOUBLE (rounded to the nearest).
   *
   * @throws InputException if the type is another, or as {@link #data()} does
   */
  public FloatBuffer floats() {
    ByteBuffer data = data();
    if (type == DataType.FLOAT) {
      return data.asFloatBuffer();
    }
    return converted(data).asFloatBuffer().asReadOnlyBuffer();
  }

  /** Numbers of another type as float32, in memory of their own. */
  private ByteBuffer converted(ByteBuffer data) {
    if (type != DataType.FLOAT16 && type != DataType.BFLOAT16 && type != DataType.DOUBLE) {
      throw new InputException("the tensor " + this + " does not hold real numbers");
    }
    ByteBuffer copy = allocate(4 * elements);
    int n = (int) elements;
    int parts = (n + CONVERTED - 1) / CONVERTED;
    IntStream.range(0, parts)
        .parallel()
        .forEach(p -> convert(data, copy, p * CONVERTED, Math.min(n, (p + 1) * CONVERTED)));
    return copy;
  }

  private void convert(ByteBuffer data, ByteBuffer copy, int from, int to) {
    for (int i = from; i < to; i++) {
      float v =
          switch (type) {
            case FLOAT16 -> HalfFloats.ofFloat16(data.getShort(2 * i));
            case BFLOAT16 -> HalfFloats.ofBfloat16(data.getShort(2 * i));
            default -> (float) data.getDouble(8 * i);
          };
      copy.putFloat(4 * i, v);
    }
  }

  /** This tensor in float32; the tensor itself where it is float32. */
  OnnxInitializer asFloat32() {
    if (type == DataType.FLOAT) {
      return this;
    }
    return computed(name, DataType.FLOAT, dims, () -> converted(data()));
  }

  /**
   * A FLOAT tensor in 16 bits, each value rounded to the nearest, of two as near to the even one.
   *
   * @param half FLOAT16 or BFLOAT16
   */
  public OnnxInitializer rounded(DataType half) {
    FloatBuffer values = floats();
    ByteBuffer data = allocate(2L * elements);
    for (int i = 0; i < values.limit(); i++) {
      float value = values.get(i);
      data.putShort(
          2 * i,
          half == DataType.FLOAT16 ? HalfFloats.toFloat16(value) : HalfFloats.toBfloat16(value));
    }
    return of(name, half, dims, data);
  }

  /** This tensor under another name. */
  public OnnxInitializer withName(String newName) {
    return new OnnxInitializer(
        newName,
        type,
        dims,
        proto == null ? null : proto.toBuilder().setName(newName).build(),
        file,
        fileOffset,
        computed);
  }

  /** Whether the data can stand inside a model file. */
  boolean fitsMessage() {
    return file == null;
  }

  /** The bytes of the message with its data inside; of one that is not made yet nearly so many. */
  long messageSize() {
    return proto != null ? proto.getSerializedSize() : byteLength() + name.length() + dims.length;
  }

  /** The message with its data inside. */
  public TensorProto message() {
    if (computed != null) {
      return of(name, type, dims, data()).proto;
    }
    if (proto == null) {
      throw new InputException(
          "the tensor " + name + " has " + byteLength() + " bytes and cannot stand in one message");
    }
    return proto;
  }

  /** The message of this tensor with its data in the file {@code location} beside the model. */
  TensorProto externalMessage(String location, long offset) {
    TensorProto.Builder b = TensorProto.newBuilder().setName(name).setDataType(type.getNumber());
    if (proto != null && proto.hasDocString()) {
      b.setDocString(proto.getDocString());
    }
    for (long d : dims) {
      b.addDims(d);
    }
    return b.setDataLocation(DataLocation.EXTERNAL)
        .addExternalData(OnnxTensors.entry("location", location))
        .addExternalData(OnnxTensors.entry("offset", Long.toString(offset)))
        .addExternalData(OnnxTensors.entry("length", Long.toString(byteLength())))
        .build();
  }

  private static ByteBuffer allocate(long bytes) {
    return ByteBuffer.allocateDirect(Math.toIntExact(bytes)).order(ByteOrder.LITTLE_ENDIAN);
  }

  @Override
  public String toString() {
    return name + " " + type + Arrays.toString(dims);
  }
}
