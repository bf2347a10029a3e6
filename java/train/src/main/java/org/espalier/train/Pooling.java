package org.espalier.train;

/** How the hidden states [tokens, width] of a text become one embedding. */
public enum Pooling {
  /** The mean over its tokens. */
  MEAN,
  /** The first token. */
  CLS,
  /** The last token, behind which there is padding alone. */
  LAST
}
