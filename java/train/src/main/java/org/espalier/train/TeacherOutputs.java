package org.espalier.train;

import java.io.DataOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.security.DigestOutputStream;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.InputException;
import org.espalier.format.Sha256;
import org.espalier.format.onnx.ModelStream;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.TorchDevice;

/**
 * What the teacher gives for the examples that it is asked of, computed once and kept in a file: hidden states [tokens,
 * width] of a text, or an output of any shape. A file is found again by a digest of the teacher and the examples.
 */
final class TeacherOutputs implements AutoCloseable {
  private static final int BATCH = 32;

  private final FileChannel file;
  private final Path temporary;

  /** The examples that are there, ascending. */
  private final int[] asked;

  /** Where each of them starts, in floats; one more entry than examples. */
  private final long[] starts;

  private final int width;
  private final boolean perToken;

  private TeacherOutputs(
      FileChannel file, Path temporary, int[] asked, long[] starts, int width, boolean perToken) {
    this.file = file;
    this.temporary = temporary;
    this.asked = asked;
    this.starts = starts;
    this.width = width;
    this.perToken = perToken;
  }

  /**
   * Opens the outputs, which are computed where the folder does not have them.
   *
   * @param teachers the same model twice, for two threads
   * @param output the one that is kept
   * @param digest of the teacher, see {@link #digest(OnnxModel)}
   * @param asked the examples that it is asked of, ascending
   * @param width of a token's states, or the values of an example's output
   * @param perToken whether outputs are [N, tokens, width]; else [N, …]
   * @param folder null: a file that goes when this is closed
   */
  static TeacherOutputs open(
      List<Lane> teachers,
      String output,
      SideBySide threads,
      byte[] digest,
      Examples examples,
      int[] asked,
      int width,
      boolean perToken,
      Path folder,
      TrainingListener listener) {
    long[] starts = new long[asked.length + 1];
    for (int i = 0; i < asked.length; i++) {
      starts[i + 1] = starts[i] + (long) (perToken ? examples.length(asked[i]) : 1) * width;
    }
    try {
      if (folder != null) {
        Files.createDirectories(folder);
        Path known =
            folder.resolve("teacher-" + key(digest, output, examples, asked, perToken) + ".f32");
        if (!Files.exists(known) || Files.size(known) != 4 * starts[asked.length]) {
          Path making = Files.createTempFile(folder, "teacher-", ".tmp");
          try {
            compute(
                teachers, output, threads, examples, asked, width, perToken, starts, making,
                listener);
            Files.move(making, known, StandardCopyOption.ATOMIC_MOVE);
          } finally {
            Files.deleteIfExists(making);
          }
        }
        FileChannel channel = FileChannel.open(known, StandardOpenOption.READ);
        return new TeacherOutputs(channel, null, asked, starts, width, perToken);
      }
      Path making = Files.createTempFile(temporaryPrefix(), ".f32");
      making.toFile().deleteOnExit();
      boolean made = false;
      try {
        compute(
            teachers, output, threads, examples, asked, width, perToken, starts, making, listener);
        FileChannel channel = FileChannel.open(making, StandardOpenOption.READ);
        made = true;
        return new TeacherOutputs(channel, making, asked, starts, width, perToken);
      } finally {
        if (!made) {
          Files.deleteIfExists(making); // a host may live long after a disk was full
        }
      }
    } catch (IOException e) {
      throw InputException.of(
          "the outputs of the teacher cannot be stored in "
              + (folder == null ? System.getProperty("java.io.tmpdir") : folder),
          e);
    }
  }

  /** Of files that go with the process: named after it, so that what one that was killed has left can be told. */
  static String temporaryPrefix() {
    return "espalier-teacher-" + ProcessHandle.current().pid() + "-";
  }

  private static void compute(
      List<Lane> teachers,
      String output,
      SideBySide threads,
      Examples examples,
      int[] asked,
      int width,
      boolean perToken,
      long[] starts,
      Path path,
      TrainingListener listener)
      throws IOException {
    List<int[]> batches = Batches.inOrder(examples, asked, BATCH);
    try (FileChannel file = FileChannel.open(path, StandardOpenOption.WRITE);
        TeacherOutputs out = new TeacherOutputs(file, null, asked, starts, width, perToken)) {
      int done = 0;
      for (int i = 0; i < batches.size(); i += 2) {
        int[] one = batches.get(i);
        int[] two = i + 1 < batches.size() ? batches.get(i + 1) : new int[0];
        done +=
            threads
                .run(
                    () -> out.compute(teachers.get(0), output, examples, one),
                    () -> out.compute(teachers.get(1), output, examples, two))
                .stream()
                .mapToInt(Integer::intValue)
                .sum();
        listener.note("teacher", done, asked.length);
      }
      file.force(true);
    } catch (UncheckedIOException e) {
      throw e.getCause();
    }
  }

  /** Computes and writes the outputs of some examples, whose number it returns. */
  private int compute(Lane teacher, String name, Examples examples, int[] indices) {
    if (indices.length == 0) {
      return 0;
    }
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Batch batch = Batch.of(examples, indices, teacher.graph().inputNames());
      Tensor output = TorchDevice.CPU.place(teacher.forward(batch, name)).contiguous();
      check(name, output, batch, width, perToken);
      FloatPointer values = new FloatPointer(output.data_ptr());
      long row = (long) (perToken ? batch.longest() : 1) * width;
      for (int i = 0; i < indices.length; i++) {
        int place = place(indices[i]);
        int n = (int) (starts[place + 1] - starts[place]);
        ByteBuffer bytes = ByteBuffer.allocate(4 * n).order(ByteOrder.nativeOrder());
        float[] floats = new float[n];
        values.position(i * row).get(floats);
        checkFinite(name, floats);
        bytes.asFloatBuffer().put(floats);
        for (long at = 4 * starts[place]; bytes.hasRemaining(); ) {
          at += file.write(bytes, at);
        }
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    return indices.length;
  }

  /** Room for what a teacher says of so many examples of one shape: [N, width]. */
  Tensor room(int examples) {
    return torch.empty(examples, width);
  }

  /** Which of those that are there an example is. */
  private int place(int example) {
    int place = Arrays.binarySearch(asked, example);
    if (place < 0) {
      throw new IllegalArgumentException("the teacher was not asked of example " + example);
    }
    return place;
  }

  private static void check(String name, Tensor output, Batch batch, int width, boolean perToken) {
    long[] shape = output.shape();
    boolean fits =
        perToken
            ? shape.length == 3
                && shape[0] == batch.size()
                && shape[1] == batch.longest()
                && shape[2] == width
            : shape.length > 0
                && shape[0] == batch.size()
                && output.numel() == (long) batch.size() * width;
    if (!fits) {
      throw new InputException(
          "the teacher's first output "
              + name
              + " has the shape "
              + Arrays.toString(shape)
              + " for "
              + batch.size()
              + " examples; the student's has "
              + (perToken
                  ? "[texts, tokens, " + width + "]"
                  : width
                      + (width == 1 ? " value" : " values")
                      + " an example; what is followed must be of each example alone, whatever the"
                      + " others of its batch"));
    }
  }

  private static void checkFinite(String output, float[] values) {
    for (float value : values) {
      if (!Float.isFinite(value)) {
        throw new InputException(
            "the teacher's output " + output + " is " + value + " for one of the examples");
      }
    }
  }

  /** A digest of a model: of its whole content. */
  static byte[] digest(OnnxModel model) {
    MessageDigest sha = Sha256.digest();
    OutputStream stream = new DigestOutputStream(OutputStream.nullOutputStream(), sha);
    try {
      ModelStream.write(model, new DataOutputStream(stream));
    } catch (IOException e) {
      throw new IllegalStateException("a digest takes all bytes", e);
    }
    return sha.digest();
  }

  private static String key(
      byte[] digest, String output, Examples examples, int[] asked, boolean perToken) {
    MessageDigest sha = Sha256.digest();
    sha.update(digest);
    sha.update(output.getBytes(StandardCharsets.UTF_8));
    sha.update((byte) (perToken ? 1 : 0));
    if (asked.length < examples.size()) {
      ByteBuffer some = ByteBuffer.allocate(Integer.BYTES * asked.length);
      some.asIntBuffer().put(asked);
      sha.update(some);
    }
    if (examples instanceof Examples.Texts texts) {
      for (long[] ids : texts.ids()) {
        ByteBuffer b = ByteBuffer.allocate(8 * ids.length + 8);
        b.putLong(ids.length);
        b.asLongBuffer().put(ids);
        sha.update(b.array());
      }
    } else if (examples instanceof Examples.Labelled rows) {
      rows.digest(sha);
    }
    return HexFormat.of().formatHex(sha.digest(), 0, 12);
  }

  /**
   * The outputs of a batch: [N, longest, width] with zeros where there is padding, or [N, width].
   */
  Tensor read(int[] indices, Batch batch) {
    long row = (long) (perToken ? batch.longest() : 1) * width;
    long n = indices.length;
    Tensor result = perToken ? torch.zeros(n, batch.longest(), width) : torch.zeros(n, width);
    FloatPointer values = new FloatPointer(result.data_ptr()).capacity(n * row);
    try {
      for (int i = 0; i < indices.length; i++) {
        int place = place(indices[i]);
        long count = starts[place + 1] - starts[place];
        ByteBuffer bytes = values.position(i * row).limit(i * row + count).asByteBuffer();
        for (long at = 4 * starts[place]; bytes.hasRemaining(); ) {
          int read = file.read(bytes, at);
          if (read < 0) {
            throw new InputException("the stored outputs of the teacher end early; delete them");
          }
          at += read;
        }
      }
    } catch (IOException e) {
      throw new InputException("the outputs of the teacher cannot be read: " + e, e);
    }
    return result;
  }

  @Override
  public void close() {
    try {
      file.close();
      if (temporary != null) {
        Files.deleteIfExists(temporary);
      }
    } catch (IOException e) {
      throw new InputException("the outputs of the teacher cannot be closed: " + e, e);
    }
  }
}
