package org.espalier.image;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicLong;
import javax.imageio.ImageIO;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ImagesTest {
  @TempDir Path folder;

  /** Of 3 x 2 pixels: red 10 times the place, green one more, blue two more. */
  private Path image(String name, int width, int height) throws IOException {
    BufferedImage image = new BufferedImage(width, height, BufferedImage.TYPE_INT_RGB);
    for (int i = 0; i < width * height; i++) {
      image.setRGB(i % width, i / width, 10 * i << 16 | 10 * i + 1 << 8 | 10 * i + 2);
    }
    Path file = folder.resolve(name);
    ImageIO.write(image, "png", file.toFile());
    return file;
  }

  private ImageProcessor processor(String json) throws IOException {
    return ImageProcessor.read(Files.writeString(folder.resolve("p.json"), json));
  }

  private static ImageInput input(DataType type, long... shape) {
    return ImageInput.of(List.of(SmallModels.value("x", type, shape)));
  }

  private Images images(String json, ImageInput input) throws IOException {
    return new Images(
        List.of(image("a.png", 3, 2)), new ImageTensors(processor(json), input), 1, Progress.NONE);
  }

  private static float[] floats(byte[] bytes) {
    float[] floats = new float[bytes.length / 4];
    ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(floats);
    return floats;
  }

  @Test
  void layouts() throws IOException {
    String plain = "{\"do_rescale\": false}";
    Images first = images(plain, input(DataType.FLOAT, -1, 3, -1, -1));
    assertEquals(List.of(3L, 2L, 3L), first.shape());
    assertArrayEquals(
        new float[] {0, 10, 20, 30, 40, 50, 1, 11, 21, 31, 41, 51, 2, 12, 22, 32, 42, 52},
        floats(first.tensor(0)));
    Images last =
        images(plain, input(DataType.FLOAT, -1, 2, 3, 3)); // ambiguous: channels are 3 last
    assertEquals(List.of(2L, 3L, 3L), last.shape());
    assertArrayEquals(
        new float[] {0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32, 40, 41, 42, 50, 51, 52},
        floats(last.tensor(0)));
    Images blue =
        images(
            "{\"do_rescale\": false, \"do_flip_channel_order\": true, \"image_mean\": [1, 2, 3],"
                + " \"image_std\": 1}",
            input(DataType.FLOAT, -1, 3, 2, 3));
    assertArrayEquals(
        new float[] {1, 11, 21, 31, 41, 51, -1, 9, 19, 29, 39, 49, -3, 7, 17, 27, 37, 47},
        floats(blue.tensor(0)));
  }

  @Test
  void types() throws IOException {
    byte[] raw = images("{\"do_rescale\": false}", input(DataType.UINT8, -1, -1, -1, 3)).tensor(0);
    assertArrayEquals(
        new byte[] {0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32, 40, 41, 42, 50, 51, 52}, raw);
    byte[] half = images("{}", input(DataType.FLOAT16, -1, 1, -1, -1)).tensor(0);
    assertEquals(2 * 6, half.length);
    // (19595 * 50 + 38470 * 51 + 7471 * 52 + 32768) >> 16 = 51; 51 / 255 = 0.2 = 0x3266 as F16
    assertEquals(0x3266, ByteBuffer.wrap(half).order(ByteOrder.LITTLE_ENDIAN).getShort(10));
    String message =
        assertThrows(InputException.class, () -> images("{}", input(DataType.UINT8, -1, 3, -1, -1)))
            .getMessage();
    assertTrue(message.contains("\"do_rescale\": false"), message);
  }

  @Test
  void refusesModelsThatTakeNoImages() {
    assertThrows(InputException.class, () -> input(DataType.INT64, -1, 3, 2, 2));
    assertThrows(InputException.class, () -> input(DataType.FLOAT, -1, 3, 2));
    assertThrows(InputException.class, () -> input(DataType.FLOAT, -1, 5, 7, 7));
    var x = SmallModels.value("x", DataType.FLOAT, -1, 3, 2, 2);
    assertThrows(InputException.class, () -> ImageInput.of(List.of(x, x)));
  }

  @Test
  void sizesMustFit() throws IOException {
    String message =
        assertThrows(
                InputException.class,
                () -> images("{\"size\": 4}", input(DataType.FLOAT, -1, 3, 2, 3)))
            .getMessage();
    assertTrue(message.contains("4 x 4 (height x width); the model takes 2 x 3"), message);
    message =
        assertThrows(InputException.class, () -> images("{}", input(DataType.FLOAT, -1, 3, 3, 2)))
            .getMessage();
    assertTrue(message.contains("has 2 x 3 pixels"), message);
    List<Path> files = List.of(image("a.png", 3, 2), image("b.png", 2, 3));
    message =
        assertThrows(
                InputException.class,
                () ->
                    new Images(
                        files,
                        new ImageTensors(processor("{}"), ImageInput.OF_MODULES),
                        2,
                        Progress.NONE))
            .getMessage();
    assertTrue(message.contains("b.png becomes [3, 3, 2], earlier ones [3, 2, 3]"), message);
    message =
        assertThrows(
                InputException.class,
                () ->
                    images(
                        "{\"image_mean\": [1, 1, 1], \"image_std\": 1}",
                        input(DataType.FLOAT, -1, 1, 2, 3)))
            .getMessage();
    assertTrue(message.contains("have 3 numbers; the model takes images of 1 channel"), message);
  }

  /** There is nothing behind the header that could be decoded. */
  @Test
  void anImageOfAWrongSizeIsRefusedByItsHeader() throws IOException {
    byte[] header = ImageFileTest.header(9998, 9999);
    ImageInput input = input(DataType.FLOAT, -1, 3, 2, 3);
    ImageTensors plain = new ImageTensors(processor("{}"), input);
    String message =
        assertThrows(InputException.class, () -> plain.read(header, "a.png")).getMessage();
    assertTrue(message.contains("a.png has 9999 x 9998 pixels (height x width)"), message);
    ImageTensors cropped =
        new ImageTensors(processor("{\"crop_size\": {\"height\": 2, \"width\": 3}}"), input);
    byte[] small = ImageFileTest.header(9, 9);
    message = assertThrows(InputException.class, () -> cropped.read(small, "a.png")).getMessage();
    assertTrue(message.contains("a.png cannot be read"), message);
  }

  @Test
  void severalThreadsReadInOrderAndTell() throws IOException {
    List<Path> files = new ArrayList<>();
    for (int i = 0; i < 40; i++) {
      BufferedImage image = new BufferedImage(1, 1, BufferedImage.TYPE_INT_RGB);
      image.setRGB(0, 0, i << 16);
      files.add(folder.resolve(i + ".png"));
      ImageIO.write(image, "png", files.get(i).toFile());
    }
    AtomicLong most = new AtomicLong();
    Images images =
        new Images(
            files,
            new ImageTensors(processor("{\"do_rescale\": false}"), ImageInput.OF_MODULES),
            4,
            (phase, done, total) -> most.accumulateAndGet(done, Math::max));
    assertEquals(40, most.get());
    assertEquals(40, images.size());
    for (int i = 0; i < 40; i++) {
      assertArrayEquals(new float[] {i, 0, 0}, floats(images.tensor(i)));
    }
  }
}
