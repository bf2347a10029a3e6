package org.espalier.image;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.awt.color.ColorSpace;
import java.awt.color.ICC_Profile;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.zip.CRC32;
import org.espalier.GoldenFiles;
import org.espalier.InputException;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Images are read and resized to the bits that Pillow makes of them. */
class ImageFileTest {
  private static final Path GOLDEN = GoldenFiles.repository().resolve("images");

  @TempDir Path folder;

  private static Pixels expected(String name) {
    try (SafetensorsFile file = SafetensorsFile.open(GOLDEN.resolve("pillow.safetensors"))) {
      TensorInfo tensor = file.tensor(name);
      byte[] values = new byte[(int) tensor.bytes()];
      file.read(tensor, 0, ByteBuffer.wrap(values));
      int[] shape = tensor.shape().stream().mapToInt(Long::intValue).toArray();
      return new Pixels(shape[1], shape[0], shape[2], values);
    }
  }

  private static void assertSame(Pixels expected, Pixels made) {
    assertEquals(
        expected.width() + " x " + expected.height(), made.width() + " x " + made.height());
    assertEquals(expected.channels(), made.channels());
    assertArrayEquals(expected.values(), made.values());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "photo.png", "photo.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg", "palette.png",
        "bits.png", "grey_alpha.png", "alpha.png", "photo.bmp", "photo.gif", "turned2.jpg",
        "turned3.jpg", "turned4.jpg", "turned5.jpg", "turned6.jpg", "turned7.jpg", "turned8.jpg"
      })
  void readsWhatPillowReads(String name) {
    assertSame(expected(name), ImageFile.read(GOLDEN.resolve(name), 3, ImageFile.ANY));
  }

  @Test
  void greyIsWhatPillowMakes() {
    assertSame(expected("grey"), ImageFile.read(GOLDEN.resolve("photo.png"), 1, ImageFile.ANY));
  }

  @ParameterizedTest
  @EnumSource(Resampling.class)
  void resizesAsPillowDoes(Resampling filter) {
    Pixels image = ImageFile.read(GOLDEN.resolve("photo.png"), 3, ImageFile.ANY);
    for (int[] size : new int[][] {{20, 15}, {61, 12}, {17, 47}, {90, 70}, {30, 80}}) {
      String name = filter.name().toLowerCase() + " " + size[0] + "x" + size[1];
      assertSame(expected(name), filter.resize(image, size[0], size[1]));
    }
  }

  @Test
  void whichOfTwoIsNearestFollowsPillowsSums() {
    byte[] values = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
    Pixels made = Resampling.NEAREST.resize(new Pixels(14, 1, 1, values), 77, 1);
    StringBuilder seen = new StringBuilder();
    for (byte value : made.values()) {
      seen.append(Integer.toHexString(value));
    }
    assertEquals(
        "0000011111122222233333444444555556666667777788888899999aaaaaabbbbbccccccddddd",
        seen.toString());
  }

  @Test
  void sixteenBitsBecomeEight() throws IOException {
    var image =
        new java.awt.image.BufferedImage(2, 1, java.awt.image.BufferedImage.TYPE_USHORT_GRAY);
    image.getRaster().setSample(0, 0, 0, 0x12FF);
    image.getRaster().setSample(1, 0, 0, 0xFE00);
    Path file = folder.resolve("deep.png");
    javax.imageio.ImageIO.write(image, "png", file.toFile());
    assertArrayEquals(
        new byte[] {0x12, 0x12, 0x12, (byte) 0xFE, (byte) 0xFE, (byte) 0xFE},
        ImageFile.read(file, 3, ImageFile.ANY).values());
  }

  private static String failure(Path file) {
    return assertThrows(InputException.class, () -> ImageFile.read(file, 3, ImageFile.ANY))
        .getMessage();
  }

  @Test
  void saysWhatIsNoImage() throws IOException {
    assertEquals("there is no image " + folder.resolve("no"), failure(folder.resolve("no")));
    assertEquals("there is no image " + folder, failure(folder));
    Path text = Files.writeString(folder.resolve("a.jpg"), "no image at all");
    assertEquals("the image " + text + " is none of JPEG, PNG, GIF, BMP or TIFF", failure(text));
    assertTrue(failure(Files.createFile(folder.resolve("empty.png"))).contains("is none of JPEG"));
  }

  @Test
  void saysWhatIsCutOff() throws IOException {
    for (String name :
        List.of("photo.jpg", "progressive.jpg", "photo.png", "photo.gif", "photo.bmp")) {
      byte[] whole = Files.readAllBytes(GOLDEN.resolve(name));
      Path cut = folder.resolve(name);
      Files.write(cut, Arrays.copyOf(whole, whole.length / 2));
      assertTrue(failure(cut).startsWith("the image " + cut), failure(cut));
      assertTrue(failure(cut).contains("cut off"), failure(cut));
      assertFalse(failure(cut).contains("Exception"), failure(cut));
    }
  }

  @Test
  void damagedFilesAreBadInput() throws IOException {
    var random = new java.util.Random(3);
    for (String name :
        List.of("photo.jpg", "cmyk.jpg", "turned6.jpg", "palette.png", "photo.gif", "photo.bmp")) {
      byte[] whole = Files.readAllBytes(GOLDEN.resolve(name));
      for (int trial = 0; trial < 60; trial++) {
        byte[] bytes = whole.clone();
        for (int k = 0; k < 4; k++) {
          bytes[random.nextInt(Math.min(bytes.length, 700))] = (byte) random.nextInt();
        }
        Path file = Files.write(folder.resolve(name), bytes);
        try {
          ImageFile.read(file, 3, ImageFile.ANY);
        } catch (InputException e) {
          assertTrue(e.getMessage().contains(file.toString()), e.getMessage());
        }
      }
    }
  }

  /** The first bytes of a PNG, which say its size. */
  static byte[] header(int width, int height) {
    ByteBuffer header = ByteBuffer.allocate(33);
    header.put(new byte[] {(byte) 0x89, 'P', 'N', 'G', 13, 10, 26, 10});
    header.putInt(13).put("IHDR".getBytes(StandardCharsets.US_ASCII));
    header.putInt(width).putInt(height).put(new byte[] {8, 2, 0, 0, 0});
    CRC32 sum = new CRC32();
    sum.update(header.array(), 12, 17);
    header.putInt((int) sum.getValue());
    return header.array();
  }

  /** The size is that of the image as it is read, upright. */
  @ParameterizedTest
  @ValueSource(strings = {"photo.png", "photo.jpg", "photo.gif", "turned3.jpg", "turned6.jpg"})
  void theSizeIsKnownBefore(String name) {
    int[] size = new int[2];
    Pixels read =
        ImageFile.read(
            GOLDEN.resolve(name),
            3,
            (height, width) -> {
              size[0] = height;
              size[1] = width;
            });
    assertArrayEquals(new int[] {read.height(), read.width()}, size);
  }

  @Test
  void aSmallFileThatSaysItIsLargeIsRefused() throws IOException {
    Path file = Files.write(folder.resolve("bomb.png"), header(60_000, 50_000));
    assertEquals(
        "the image " + file + " has 60000 x 50000 pixels; at most 100000000 are read",
        failure(file));
  }

  /** A JPEG with a segment behind its first marker. */
  private static byte[] withSegment(byte[] jpeg, int marker, byte[] content) {
    return ByteBuffer.allocate(jpeg.length + content.length + 4)
        .put(jpeg, 0, 2)
        .put((byte) 0xFF)
        .put((byte) marker)
        .putShort((short) (content.length + 2))
        .put(content)
        .put(jpeg, 2, jpeg.length - 2)
        .array();
  }

  /** The segment of a JPEG that has all of a profile. */
  private static byte[] profile(int colours) {
    byte[] data = ICC_Profile.getInstance(colours).getData();
    return ByteBuffer.allocate(14 + data.length)
        .put("ICC_PROFILE\0\1\1".getBytes(StandardCharsets.US_ASCII))
        .put(data)
        .array();
  }

  @Test
  void aColourProfileChangesNoValue() throws IOException {
    for (String name : List.of("photo.jpg", "progressive.jpg", "cmyk.jpg", "grey.jpg")) {
      byte[] jpeg = Files.readAllBytes(GOLDEN.resolve(name));
      for (int colours : new int[] {ColorSpace.CS_LINEAR_RGB, ColorSpace.CS_GRAY}) {
        byte[] profiled = withSegment(jpeg, 0xE2, profile(colours));
        assertSame(expected(name), ImageFile.read(profiled, name, 3, ImageFile.ANY));
      }
    }
  }

  @Test
  void otherSegmentsStay() throws IOException {
    byte[] turned = Files.readAllBytes(GOLDEN.resolve("turned6.jpg"));
    byte[] other = withSegment(turned, 0xE2, "MPF\0and more".getBytes(StandardCharsets.US_ASCII));
    assertSame(expected("turned6.jpg"), ImageFile.read(other, "a.jpg", 3, ImageFile.ANY));
    byte[] both = withSegment(other, 0xE2, profile(ColorSpace.CS_LINEAR_RGB));
    assertSame(expected("turned6.jpg"), ImageFile.read(both, "a.jpg", 3, ImageFile.ANY));
  }

  @Test
  void manyScansWouldTakeLong() throws IOException {
    byte[] jpeg = Files.readAllBytes(GOLDEN.resolve("progressive.jpg"));
    int last = jpeg.length - 2;
    while ((jpeg[last] & 255) != 0xFF || (jpeg[last + 1] & 255) != 0xDA) {
      last--;
    }
    ByteBuffer many = ByteBuffer.allocate(101 * jpeg.length);
    many.put(jpeg, 0, jpeg.length - 2);
    for (int i = 0; i < 100; i++) {
      many.put(jpeg, last, jpeg.length - 2 - last);
    }
    byte[] bomb = Arrays.copyOf(many.array(), many.position());
    assertEquals(
        "the image a.jpg has more than 100 scans",
        assertThrows(InputException.class, () -> ImageFile.read(bomb, "a.jpg", 3, ImageFile.ANY))
            .getMessage());
  }

  @Test
  void whatComesBehindAJpegIsNotLookedAt() throws IOException {
    byte[] jpeg = Files.readAllBytes(GOLDEN.resolve("photo.jpg"));
    byte[] film = Arrays.copyOf(jpeg, jpeg.length + 1000); // as telephones write it behind
    for (int i = jpeg.length; i < film.length; i += 2) {
      film[i] = (byte) 0xFF;
      film[i + 1] = (byte) 0xDA;
    }
    assertSame(expected("photo.jpg"), ImageFile.read(film, "a.jpg", 3, ImageFile.ANY));
  }

  /** A TIFF of one pixel, of 8 bits, but for what tags say. */
  private static byte[] tiff(int... tags) {
    ByteBuffer file = ByteBuffer.allocate(1000).order(ByteOrder.LITTLE_ENDIAN);
    file.put(new byte[] {'I', 'I', 42, 0}).putInt(8).putShort((short) (tags.length / 2));
    for (int i = 0; i < tags.length; i += 2) {
      boolean isShort = tags[i] == 259; // the compression, as every file has it
      file.putShort((short) tags[i]).putShort((short) (isShort ? 3 : 4)).putInt(1);
      file.putInt(tags[i + 1]);
    }
    return file.array();
  }

  @Test
  void sidesBelowOneAreRefused() {
    byte[] bytes =
        tiff(
            256,
            0x0D00003D,
            257,
            -59_857,
            258,
            8,
            259,
            1,
            262,
            1,
            273,
            500,
            277,
            1,
            278,
            1,
            279,
            1);
    String message =
        assertTimeoutPreemptively( // it waited for ever for room that there never was
            Duration.ofSeconds(20),
            () ->
                assertThrows(
                        InputException.class,
                        () -> ImageFile.read(bytes, "a.tif", 3, ImageFile.ANY))
                    .getMessage());
    assertEquals(
        "the image a.tif has 218103869 x -59857 pixels; at most 100000000 are read", message);
  }

  @Test
  void tilesThatAreLargerThanTheImageCount() {
    int[] tags = {
      256, 1, 257, 1, 258, 8, 259, 8, 262, 1, 277, 1, 322, 60_000, 323, 30_000, 324, 500, 325, 9
    };
    assertEquals(
        "the image a.tif has 60000 x 30000 pixels a tile; at most 100000000 are read",
        assertThrows(
                InputException.class, () -> ImageFile.read(tiff(tags), "a.tif", 3, ImageFile.ANY))
            .getMessage());
  }

  @ParameterizedTest
  @ValueSource(ints = {6, 7})
  void aTiffOfJpegIsRefused(int compression) {
    int[] tags = {
      256, 1, 257, 1, 258, 8, 259, compression, 262, 1, 273, 200, 277, 1, 278, 1, 279, 9
    };
    assertEquals(
        "the image a.tif is a TIFF of JPEG; a JPEG is right",
        assertThrows(
                InputException.class, () -> ImageFile.read(tiff(tags), "a.tif", 3, ImageFile.ANY))
            .getMessage());
  }

  @Test
  void aStripThatIsNotThereIsBadInput() {
    int[] tags = {
      256, 1, 257, 1, 258, 8, 259, 5, 262, 1, 273, 200, 277, 1, 278, 1, 279, Integer.MAX_VALUE
    };
    String message =
        assertThrows(
                InputException.class, () -> ImageFile.read(tiff(tags), "a.tif", 3, ImageFile.ANY))
            .getMessage();
    assertTrue(message.startsWith("the image a.tif cannot be read"), message);
  }

  @Test
  void otherKindsThatImageioReadsAreRefused() throws IOException {
    byte[] wbmp = {0, 0, 8, 1, 0x55}; // any zeros would do
    Path file = Files.write(folder.resolve("a.png"), wbmp);
    assertEquals("the image " + file + " is none of JPEG, PNG, GIF, BMP or TIFF", failure(file));
  }

  @Test
  void textInAPngIsNotUnpacked() throws IOException {
    byte[] png = Files.readAllBytes(GOLDEN.resolve("photo.png"));
    ByteBuffer chunk = ByteBuffer.allocate(12 + 100);
    chunk.putInt(100).put("zTXt".getBytes(StandardCharsets.US_ASCII)); // of no name
    CRC32 sum = new CRC32();
    sum.update(chunk.array(), 4, 104);
    chunk.putInt(108, (int) sum.getValue());
    byte[] bytes =
        ByteBuffer.allocate(png.length + 112)
            .put(png, 0, 33)
            .put(chunk.array())
            .put(png, 33, png.length - 33)
            .array();
    assertSame(expected("photo.png"), ImageFile.read(bytes, "a.png", 3, ImageFile.ANY));
  }
}
