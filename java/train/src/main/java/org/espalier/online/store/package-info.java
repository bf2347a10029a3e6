/**
 * Learners and their models as files: {@link org.espalier.online.store.LearnerFiles} publishes a learner as a version of a
 * store and goes on with one, {@link org.espalier.online.store.ModelFiles} reads what can be learned. A file may hold
 * anything: what is wrong is an {@link org.espalier.InputException} that names it, and a version appears whole or not at all.
 */
package org.espalier.online.store;
