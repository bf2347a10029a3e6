/** Files of images as models take them: decoded, resized, cropped and scaled as their preprocessor_config.json says. */
package org.espalier.image;
