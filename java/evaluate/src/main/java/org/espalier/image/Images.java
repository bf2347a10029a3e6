package org.espalier.image;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.espalier.InputException;
import org.espalier.compress.Progress;

/**
 * Files of images as a model takes them. Each is read when this is made, so that none fails later; their pixels stay in memory,
 * a byte a value, as long as they take less than a quarter of it, and are read again where they do not. For several threads.
 */
public final class Images {
  private final List<Path> files;
  private final ImageTensors tensors;
  private final Pixels[] kept;
  private final AtomicLong room = new AtomicLong(Runtime.getRuntime().maxMemory() / 4);
  private final List<Long> shape;

  /**
   * Reads images.
   *
   * @param files at least one
   * @param tensors what is made of each
   * @param threads that read, at least 1
   * @param progress hears how many were read; what it throws ends the reading
   * @throws InputException where one is no image, or they are not of one size that the model takes
   */
  public Images(List<Path> files, ImageTensors tensors, int threads, Progress progress) {
    this.files = List.copyOf(files);
    this.tensors = tensors;
    kept = new Pixels[files.size()];
    AtomicInteger done = new AtomicInteger();
    ExecutorService readers = Executors.newFixedThreadPool(threads);
    try {
      List<Future<List<Long>>> shapes = new ArrayList<>();
      for (int i = 0; i < kept.length; i++) {
        int which = i;
        shapes.add(
            readers.submit(
                () -> {
                  List<Long> own = tensors.input().shape(keep(which));
                  progress.at(Progress.Phase.READ, done.incrementAndGet(), kept.length);
                  return own;
                }));
      }
      shape = shapes.get(0).get();
      for (int i = 1; i < kept.length; i++) {
        if (!shapes.get(i).get().equals(shape)) {
          throw new InputException(
              "the image "
                  + files.get(i)
                  + " becomes "
                  + shapes.get(i).get()
                  + ", earlier ones "
                  + shape
                  + "; a size of height and width, or a crop_size, in "
                  + tensors.processor().file()
                  + " makes them alike");
        }
      }
    } catch (ExecutionException e) {
      if (e.getCause() instanceof RuntimeException failure) {
        throw failure;
      }
      if (e.getCause() instanceof Error failure) { // memory that ran out
        throw failure;
      }
      throw new IllegalStateException("an image could not be read", e.getCause());
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IllegalStateException("interrupted while images were read", e);
    } finally {
      readers.shutdownNow();
    }
  }

  private Pixels keep(int image) {
    Pixels pixels = read(image);
    if (room.addAndGet(-pixels.values().length) >= 0) {
      kept[image] = pixels;
    }
    return pixels;
  }

  private Pixels read(int image) {
    return tensors.pixels(files.get(image));
  }

  private Pixels again(int image) {
    Pixels pixels = read(image);
    if (!tensors.input().shape(pixels).equals(shape)) {
      throw new InputException(
          "the image " + files.get(image) + " has another size than before; it was changed");
    }
    return pixels;
  }

  /** How many there are. */
  public int size() {
    return files.size();
  }

  /** The input that they are for. */
  public ImageInput input() {
    return tensors.input();
  }

  /** The shape of each, without the batch. */
  public List<Long> shape() {
    return shape;
  }

  /**
   * What the input is fed of an image: little-endian, of the input's type and layout.
   *
   * @throws InputException where its file was changed or taken away since it was read first, and it is read again
   */
  public byte[] tensor(int image) {
    return tensors.of(kept[image] != null ? kept[image] : again(image)).bytes();
  }
}
