package org.espalier.transformers;

import java.io.IOException;
import java.nio.file.Path;

/** A model of the kind of CLIP, an encoder of texts and one of images in one. */
final class SmallClip {
  private SmallClip() {}

  /** Writes one of the kind of SigLIP. */
  static void writeSiglip(Path folder) throws IOException {
    SmallEncoder text = new SmallSiglipText(1);
    SmallEncoder image = new SmallSiglipImage(false, true);
    SmallCheckpoint w = text.weights();
    w.addAll(image.weights());
    w.add("logit_scale", 4.7, 0, 1);
    w.add("logit_bias", -12, 0, 1);
    w.write(
        folder,
        """
        {"model_type": "siglip", "architectures": ["SiglipModel"], "text_config": %s,
         "vision_config": %s}
        """
            .formatted(text.config(), image.config()));
  }

  /** Writes one, whose configuration says what the text encoder is in the old way, which counts. */
  static void write(Path folder) throws IOException {
    SmallEncoder text = new SmallClipText(7);
    SmallEncoder image = new SmallClipImage("ModelWithProjection");
    SmallCheckpoint w = text.weights();
    w.addAll(image.weights());
    w.add("logit_scale", 2.6, 0, 1);
    String config =
        """
        {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": %d,
         "text_config": {"hidden_size": 7, "eos_token_id": 2}, "text_config_dict": %s,
         "vision_config_dict": null, "vision_config": %s}
        """
            .formatted(SmallClipImage.SHARED, text.config(), image.config());
    String own = "\"projection_dim\": " + SmallClipImage.SHARED + "}";
    w.write(folder, config.replace(own, "\"projection_dim\": 512}"));
  }
}
