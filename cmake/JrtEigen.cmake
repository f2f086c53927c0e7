# SPDX-License-Identifier: Apache-2.0
# Eigen 3.4 or newer, Eigen 5 included, as the target Eigen3::Eigen: one that is there already, or a package. Installed with
# the library's own package. JRT_EIGEN_PROBLEM says what is wrong, if anything is.
set(JRT_EIGEN_PROBLEM "")
if(NOT TARGET Eigen3::Eigen)
  # Any version is asked for and compared here: to the version file of Eigen 5 a request for 3.4 is one for 3.4 alone, and
  # that of Eigen 3.4 knows no range that ends in another major version.
  find_package(Eigen3 QUIET CONFIG)
  if(NOT Eigen3_FOUND)
    set(JRT_EIGEN_PROBLEM "jrt needs Eigen 3.4 or newer, and no package Eigen3 was found (libeigen3-dev in Debian). Where it is, \
CMAKE_PREFIX_PATH or Eigen3_DIR can say.")
  elseif(Eigen3_VERSION VERSION_LESS 3.4)
    set(JRT_EIGEN_PROBLEM "jrt needs Eigen 3.4 or newer, but ${Eigen3_DIR} has ${Eigen3_VERSION}.")
  endif()
endif()
