import java.awt.Color;
import java.awt.Font;
import java.awt.Graphics2D;
import java.awt.RenderingHints;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Random;
import javax.imageio.ImageIO;

/** Draws pages of 320 x 320 pixels with eight lines of words each, as PNG files. */
final class Pages {
  private static final int SIDE = 320;
  private static final int LINES = 8;
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
    Path folder = Files.createDirectories(Path.of(arguments[0]));
    int pages = Integer.parseInt(arguments[1]);
    Random random = new Random(2026);
    for (int i = 0; i < pages; i++) {
      BufferedImage page = page(random);
      addNoise(page, random);
      ImageIO.write(page, "png", folder.resolve(String.format("%03d.png", i)).toFile());
    }
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

  /** Adds the noise of a camera. */
  private static void addNoise(BufferedImage page, Random random) {
    for (int y = 0; y < SIDE; y++) {
      for (int x = 0; x < SIDE; x++) {
        int noisy = 0;
        for (int shift = 16; shift >= 0; shift -= 8) {
          double value = (page.getRGB(x, y) >> shift & 255) + 2 * random.nextGaussian();
          noisy |= (int) Math.max(0, Math.min(255, Math.rint(value))) << shift;
        }
        page.setRGB(x, y, noisy);
      }
    }
  }
}
