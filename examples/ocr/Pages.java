import java.awt.Color;
import java.awt.Font;
import java.awt.Graphics2D;
import java.awt.RenderingHints;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Random;

/**
 * Draws pages of 320 x 320 pixels with eight lines of words each, and writes them as the detector takes
 * them: {@code inputs}, float32 [N, 3, 320, 320], of the mean and deviation of ImageNet.
 */
final class Pages {
  private static final int SIDE = 320;
  private static final int LINES = 8;
  private static final double[] MEAN = {0.485, 0.456, 0.406};
  private static final double[] DEVIATION = {0.229, 0.224, 0.225};
  private static final String[] FONTS = {
    Font.SANS_SERIF, Font.SERIF, Font.MONOSPACED, "DejaVu Sans Condensed"
  };
  private static final String[] WORDS =
      ("invoice total due friday morning harbour violin committee report spring water boils at a"
           + " lower temperature seventeen engineers measure 4096 tokens per second near the river"
           + " bank No 20831 paid 99.50 EUR while old bridge closed to heavy lorries students"
           + " passed examination")
          .split(" ");

  public static void main(String[] arguments) throws IOException {
    Path target = Path.of(arguments[0]);
    int pages = Integer.parseInt(arguments[1]);
    Random random = new Random(2026);
    int bytes = 4 * pages * 3 * SIDE * SIDE;
    byte[] header =
        String.format(
                "{\"inputs\":{\"dtype\":\"F32\",\"shape\":[%d,3,%d,%d],\"data_offsets\":[0,%d]}}",
                pages, SIDE, SIDE, bytes)
            .getBytes(StandardCharsets.UTF_8);
    ByteBuffer file = ByteBuffer.allocate(8 + header.length + bytes).order(ByteOrder.LITTLE_ENDIAN);
    file.putLong(header.length).put(header);
    for (int i = 0; i < pages; i++) {
      write(page(random), random, file);
    }
    Files.write(target, file.array());
  }

  private static BufferedImage page(Random random) {
    BufferedImage page = new BufferedImage(SIDE, SIDE, BufferedImage.TYPE_INT_RGB);
    Graphics2D g = page.createGraphics();
    g.setRenderingHint(
        RenderingHints.KEY_TEXT_ANTIALIASING, RenderingHints.VALUE_TEXT_ANTIALIAS_ON);
    int paper = 170 + random.nextInt(86);
    g.setColor(
        new Color(
            paper - random.nextInt(20), paper - random.nextInt(20), paper - random.nextInt(20)));
    g.fillRect(0, 0, SIDE, SIDE);
    for (int line = 0; line < LINES; line++) {
      g.setColor(new Color(random.nextInt(90), random.nextInt(90), random.nextInt(90)));
      g.setFont(
          new Font(
              FONTS[random.nextInt(FONTS.length)], random.nextInt(2), 12 + random.nextInt(14)));
      StringBuilder text = new StringBuilder();
      for (int words = 1 + random.nextInt(3); words > 0; words--) {
        text.append(WORDS[random.nextInt(WORDS.length)]).append(' ');
      }
      int y = 20 + (SIDE - 24) * line / LINES + random.nextInt(6);
      g.drawString(text.toString().strip(), random.nextInt(SIDE / 2), y);
    }
    g.dispose();
    return page;
  }

  /** One colour after the other, with the noise of a camera. */
  private static void write(BufferedImage page, Random random, ByteBuffer file) {
    for (int c = 0; c < 3; c++) {
      for (int y = 0; y < SIDE; y++) {
        for (int x = 0; x < SIDE; x++) {
          double value = (page.getRGB(x, y) >> (16 - 8 * c) & 255) + 2 * random.nextGaussian();
          double light = Math.max(0, Math.min(255, value)) / 255;
          file.putFloat((float) ((light - MEAN[c]) / DEVIATION[c]));
        }
      }
    }
  }
}
