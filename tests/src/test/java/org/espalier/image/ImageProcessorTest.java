package org.espalier.image;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** The files that well-known models come with, in the sizes and values that their own processors make. */
class ImageProcessorTest {
  @TempDir Path folder;

  private ImageProcessor read(String json) {
    try {
      return ImageProcessor.read(Files.writeString(folder.resolve("p.json"), json));
    } catch (IOException e) {
      throw new AssertionError(e);
    }
  }

  private String failure(String json) {
    return assertThrows(InputException.class, () -> read(json)).getMessage();
  }

  private static String sized(ImageProcessor processor, int width, int height) {
    Pixels made = processor.sized(Pixels.black(width, height, 3));
    return made.width() + " x " + made.height();
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        // ViT: both sides
        "{'size': 224, 'do_resize': true} | 224 x 224",
        "{'size': {'height': 32, 'width': 100}} | 100 x 32",
        // CLIP: the shorter side, and the middle
        "{'size': 224, 'do_center_crop': true, 'crop_size': 224, 'feature_extractor_type':"
            + " 'CLIPFeatureExtractor'} | 224 x 224",
        "{'size': {'shortest_edge': 256}, 'crop_size': {'height': 224, 'width': 200}} | 200 x 224",
        "{'size': {'shortest_edge': 100}} | 133 x 100",
        // ResNet and ConvNext
        "{'size': 224, 'crop_pct': 0.875} | 224 x 224",
        "{'size': {'shortest_edge': 384}, 'crop_pct': 1.0} | 384 x 384",
        // LeViT: an eighth more than it says, and the middle
        "{'size': {'shortest_edge': 196}, 'image_processor_type': 'LevitImageProcessor'} | 298 x"
            + " 224",
        // DPT
        "{'size': {'height': 98, 'width': 84}, 'ensure_multiple_of': 1, 'keep_aspect_ratio': false}"
            + " | 84 x 98",
        "{'size': 30, 'do_resize': false} | 400 x 300",
        "{'size': null, 'crop_size': null, 'do_center_crop': null} | 400 x 300",
        "{} | 400 x 300",
      })
  void sizes(String json, String size) {
    assertEquals(size, sized(read(json.replace('\'', '"')), 400, 300));
  }

  @Test
  void theLongerSideFollows() {
    ImageProcessor processor = read("{\"size\": {\"shortest_edge\": 50}}");
    assertEquals("50 x 66", sized(processor, 300, 401)); // 66.83, cut off
    assertEquals("50 x 50", sized(processor, 7, 7));
    assertThrows(InputException.class, () -> sized(processor, 1, 1000));
  }

  @Test
  void cropsTheMiddleWithBlackAround() {
    Pixels image = new Pixels(3, 1, 1, new byte[] {1, 2, 3});
    assertArrayEquals(new byte[] {2}, image.middle(1, 1).values());
    assertArrayEquals(new byte[] {1, 2}, image.middle(2, 1).values());
    // One more pixel goes to the left and above.
    assertArrayEquals(new byte[] {0, 1, 2, 3}, image.middle(4, 1).values());
    assertArrayEquals(
        new byte[] {0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0}, image.middle(5, 3).values());
  }

  @Test
  void valuesAreScaledAndNormalized() {
    ImageProcessor processor =
        read("{\"image_mean\": [0.5, 0.25, 0], \"image_std\": [0.5, 0.25, 2]}");
    assertEquals(-1, processor.values(0)[0]);
    assertEquals(1, processor.values(0)[255]);
    assertEquals(((float) (100 / 255.0) - 0.25f) / 0.25f, processor.values(1)[100]);
    assertEquals(0.5f, processor.values(2)[255]);
    assertEquals(100, read("{\"do_rescale\": false}").values(0)[100]);
    assertEquals(2, read("{\"rescale_factor\": 0.5}").values(1)[4]);
    assertEquals(1, read("{\"image_mean\": 1, \"do_normalize\": false}").values(0)[255]);
  }

  @Test
  void refusesWhatItDoesNotDo() {
    assertTrue(failure("{\"do_pad\": true}").contains("do_pad is 'true'; this step is not known"));
    assertEquals("224 x 224", sized(read("{\"do_pad\": false, \"size\": 224}"), 9, 9));
    assertTrue(failure("{\"rescale_offset\": true}").contains("rescale_offset"));
    assertTrue(failure("{\"keep_aspect_ratio\": true}").contains("keep_aspect_ratio"));
    assertTrue(failure("{\"ensure_multiple_of\": 14}").contains("this step is not known"));
    assertTrue(failure("{\"std\": [1, 1, 1]}").endsWith("the key image_std is right"));
    assertTrue(
        failure("{\"image_processor_type\": \"PerceiverImageProcessor\"}").contains("Perceiver"));
    assertTrue(failure("{\"size\": 256, \"do_center_crop\": true}").contains("both"));
    assertTrue(failure("{\"size\": {\"longest_edge\": 3}}").contains("shortest_edge"));
    assertTrue(failure("{\"size\": {\"height\": 0, \"width\": 3}}").contains("1 to 16384"));
    assertTrue(failure("{\"size\": 1e9}").contains("1 to 16384"));
    assertTrue(failure("{\"size\": \"big\"}").contains("size is"));
    assertTrue(failure("{\"do_resize\": true}").contains("size is"));
    assertTrue(failure("{\"resample\": 6}").contains("0 to 5"));
    assertTrue(failure("{\"image_mean\": [0.5]}").contains("image_std is"));
    assertTrue(failure("{\"image_mean\": 0, \"image_std\": [0, 1, 1]}").contains("above 0"));
    assertTrue(
        failure("{\"image_mean\": [\"a\"], \"image_std\": 1}").contains("a number is right"));
    assertTrue(failure("{\"do_resize\": 1}").contains("true or false"));
    assertTrue(failure("{\"crop_pct\": 2, \"size\": 224}").contains("crop_pct"));
    assertTrue(failure("[]").contains("is not a JSON object"));
    assertTrue(failure("{\"size\": 1, \"size\": 2}").contains("is not JSON"));
    assertTrue(failure("").contains("is not a JSON object"));
    assertTrue(
        assertThrows(InputException.class, () -> ImageProcessor.read(folder.resolve("none")))
            .getMessage()
            .contains("cannot read"));
  }
}
