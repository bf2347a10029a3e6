package org.espalier.image;

import com.twelvemonkeys.imageio.stream.ByteArrayImageInputStream;
import java.awt.color.ColorSpace;
import java.awt.image.BufferedImage;
import java.awt.image.ColorModel;
import java.awt.image.IndexColorModel;
import java.awt.image.Raster;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Iterator;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Semaphore;
import javax.imageio.ImageIO;
import javax.imageio.ImageReader;
import javax.imageio.ImageTypeSpecifier;
import javax.imageio.metadata.IIOMetadata;
import javax.imageio.metadata.IIOMetadataFormatImpl;
import javax.imageio.stream.ImageInputStream;
import org.espalier.InputException;
import org.espalier.format.InputFile;
import org.w3c.dom.Element;
import org.w3c.dom.NodeList;

/**
 * Reads JPEG, PNG, GIF (the first picture), BMP and TIFF (the first page): the values that the file has, without its colour profile
 * or transparency, upright as the EXIF of a JPEG or the tag of a TIFF says.
 */
final class ImageFile {
  private static final long MOST_PIXELS = 100_000_000;

  /** As many pixels may take without any compression. */
  private static final int MOST_BYTES = 400_000_000;

  /** Bytes that a pixel takes while it is read, beside those that are decoded: as values, and upright. */
  private static final int PIXEL_BYTES = 6;

  /** What the readers that are used call what they read; ImageIO has others for files of any beginning. */
  private static final Set<String> KINDS = Set.of("jpeg", "png", "gif", "bmp", "tif");

  /** Those that say which side is up. What others have beside pixels is not read, for it may be a bomb. */
  private static final Set<String> TURNED = Set.of("jpeg", "tif");

  /** Kilobytes for images that are being read, by all threads together: half of the memory. */
  private static final int MOST_ROOM =
      (int) Math.min(Integer.MAX_VALUE, Runtime.getRuntime().maxMemory() / 2 >> 10);

  private static final Semaphore ROOM = new Semaphore(MOST_ROOM, true);

  /** EXIF's numbers of the orientations that ImageIO has names for. */
  private static final Map<String, Integer> ORIENTATIONS =
      Map.of(
          "FlipH", 2,
          "Rotate180", 3,
          "FlipV", 4,
          "FlipVRotate90", 5,
          "Rotate270", 6,
          "FlipHRotate90", 7,
          "Rotate90", 8);

  /** The first of EXIF's numbers of images that lie on a side. */
  private static final int FIRST_LYING = 5;

  /** Images of every size are right. */
  static final Size ANY = (height, width) -> {};

  private ImageFile() {}

  /** What size of an image is right. */
  interface Size {
    /**
     * Sees how large an image is, upright, before it is decoded.
     *
     * @throws InputException where the size is wrong
     */
    void require(int height, int width);
  }

  /**
   * Reads an image.
   *
   * @param channels 3, or 1 for shades of grey
   * @throws InputException where the file is no image, a damaged or too large one, or one of a wrong size
   */
  static Pixels read(Path file, int channels, Size size) {
    if (!Files.isRegularFile(file)) {
      throw new InputException("there is no image " + file);
    }
    byte[] content;
    try {
      content = InputFile.bytes(file, MOST_BYTES);
    } catch (IOException e) {
      throw InputException.of("cannot read the image " + file, e);
    } catch (OutOfMemoryError e) {
      throw tooLarge(file.toString(), e);
    }
    return read(content, file.toString(), channels, size);
  }

  /**
   * The same of what a file holds.
   *
   * @param name what messages call it
   */
  static Pixels read(byte[] content, String name, int channels, Size size) {
    byte[] plain = JpegContent.is(content) ? JpegContent.withoutProfile(content, name) : content;
    try (ImageInputStream in = new ByteArrayImageInputStream(plain)) {
      ImageReader reader = reader(in, name);
      try {
        Pixels pixels = read(reader, in, name, size);
        return channels == 1 ? pixels.grey() : pixels;
      } finally {
        reader.dispose();
      }
    } catch (InputException e) {
      throw e;
    } catch (IOException | RuntimeException e) {
      // What readers throw at damaged files is of many kinds.
      throw new InputException(
          "the image " + name + " cannot be read: it is damaged or cut off" + reason(e), e);
    } catch (OutOfMemoryError e) {
      throw tooLarge(name, e);
    }
  }

  private static ImageReader reader(ImageInputStream in, String name) {
    Iterator<ImageReader> readers = ImageIO.getImageReaders(in);
    while (readers.hasNext()) {
      ImageReader reader = readers.next();
      if (KINDS.contains(kind(reader))) {
        return reader;
      }
      reader.dispose();
    }
    throw new InputException("the image " + name + " is none of JPEG, PNG, GIF, BMP or TIFF");
  }

  private static String kind(ImageReader reader) {
    return reader.getOriginatingProvider().getFormatNames()[0].toLowerCase(Locale.ROOT);
  }

  /** Of what a damaged file says of itself a reader may want any amount of memory, at once and in vain. */
  private static InputException tooLarge(String name, OutOfMemoryError e) {
    return new InputException(
        "the image "
            + name
            + " is damaged, or it takes more memory than there is, of which -Xmx gives more",
        e);
  }

  /** What a reader says of a file; what it fails with in other ways says nothing to its users. */
  private static String reason(Exception e) {
    return e instanceof IOException && e.getMessage() != null ? " (" + e.getMessage() + ")" : "";
  }

  private static Pixels read(ImageReader reader, ImageInputStream in, String name, Size size)
      throws IOException {
    boolean turned = TURNED.contains(kind(reader));
    reader.setInput(in, true, !turned);
    if (kind(reader).equals("tif") && value(reader, "CompressionTypeName").contains("JPEG")) {
      // A tile may hold any number of scans, each of which has all of it decoded anew.
      throw new InputException("the image " + name + " is a TIFF of JPEG; a JPEG is right");
    }
    int width = reader.getWidth(0);
    int height = reader.getHeight(0);
    long pixels = pixels(width, height, "pixels", name);
    int orientation = turned ? ORIENTATIONS.getOrDefault(value(reader, "ImageOrientation"), 1) : 1;
    boolean lies = orientation >= FIRST_LYING;
    size.require(lies ? width : height, lies ? height : width);
    if (reader.isImageTiled(0)) {
      long tile = pixels(reader.getTileWidth(0), reader.getTileHeight(0), "pixels a tile", name);
      pixels = Math.max(pixels, tile); // a whole tile is read, whatever of it there is
    }
    long room = (pixels * (decodedBytes(reader) + PIXEL_BYTES) >> 10) + 1;
    if (room > MOST_ROOM) {
      throw new InputException(
          "the image "
              + name
              + " has "
              + pixels
              + " pixels, which take half of the memory that there is; -Xmx gives more");
    }
    ROOM.acquireUninterruptibly((int) room);
    try {
      return decode(reader, orientation, name);
    } finally {
      ROOM.release((int) room);
    }
  }

  /** How many there are, which is refused where there are too many. */
  private static long pixels(long width, long height, String what, String name) {
    if (width < 1 || height < 1 || width * height > MOST_PIXELS) {
      throw new InputException(
          "the image "
              + name
              + " has "
              + width
              + " x "
              + height
              + " "
              + what
              + "; at most "
              + MOST_PIXELS
              + " are read");
    }
    return width * height;
  }

  /** The bytes of a pixel as the reader gives it. */
  private static long decodedBytes(ImageReader reader) throws IOException {
    ImageTypeSpecifier type = reader.getImageTypes(0).next();
    long bits = 0;
    for (int band = 0; band < type.getNumBands(); band++) {
      bits += type.getBitsPerBand(band);
    }
    return (bits + 7) / 8;
  }

  private static Pixels decode(ImageReader reader, int orientation, String name)
      throws IOException {
    boolean[] cut = new boolean[1];
    reader.addIIOReadWarningListener(
        (source, warning) -> cut[0] |= warning.contains("premature end"));
    BufferedImage image = reader.read(0);
    if (cut[0]) {
      throw new InputException("the image " + name + " is cut off");
    }
    return colours(image, name).upright(orientation);
  }

  /** What a file says beside its pixels; empty where it does not say it. */
  private static String value(ImageReader reader, String element) throws IOException {
    IIOMetadata metadata = reader.getImageMetadata(0);
    if (metadata == null || !metadata.isStandardMetadataFormatSupported()) {
      return "";
    }
    Element root = (Element) metadata.getAsTree(IIOMetadataFormatImpl.standardMetadataFormatName);
    NodeList found = root.getElementsByTagName(element);
    return found.getLength() == 0 ? "" : ((Element) found.item(0)).getAttribute("value");
  }

  private static Pixels colours(BufferedImage image, String name) {
    Pixels made = Pixels.black(image.getWidth(), image.getHeight(), 3);
    Raster raster = image.getRaster();
    ColorModel model = image.getColorModel();
    int space = model.getColorSpace().getType();
    if (model instanceof IndexColorModel palette) {
      int[] row = new int[made.width()];
      for (int y = 0; y < made.height(); y++) {
        raster.getPixels(0, y, made.width(), 1, row);
        for (int x = 0; x < made.width(); x++) {
          set(
              made,
              x,
              y,
              palette.getRed(row[x]),
              palette.getGreen(row[x]),
              palette.getBlue(row[x]));
        }
      }
      return made;
    }
    int bits = raster.getSampleModel().getSampleSize(0);
    if (space != ColorSpace.TYPE_RGB && space != ColorSpace.TYPE_GRAY || bits > 16) {
      throw new InputException(
          "the image " + name + " has no colours of red, green and blue in 8 or 16 bits");
    }
    int bands = raster.getNumBands();
    int green = space == ColorSpace.TYPE_RGB ? 1 : 0;
    int[] row = new int[made.width() * bands];
    int[] most = raster.getSampleModel().getSampleSize();
    for (int b = 0; b < bands; b++) {
      most[b] = (1 << most[b]) - 1;
    }
    for (int y = 0; y < made.height(); y++) {
      raster.getPixels(0, y, made.width(), 1, row);
      for (int x = 0; x < made.width(); x++) {
        int at = x * bands;
        set(
            made,
            x,
            y,
            eightBits(row[at], most[0]),
            eightBits(row[at + green], most[green]),
            eightBits(row[at + 2 * green], most[2 * green]));
      }
    }
    return made;
  }

  private static int eightBits(int value, int most) {
    return most == 255 ? value : most > 255 ? value >> 8 : value * 255 / most;
  }

  private static void set(Pixels image, int x, int y, int red, int green, int blue) {
    int at = (y * image.width() + x) * 3;
    image.values()[at] = (byte) red;
    image.values()[at + 1] = (byte) green;
    image.values()[at + 2] = (byte) blue;
  }
}
